"""An agent: a model that may ask for tools before it answers. `fedmed agent NAME@ALIAS --image X --question Q`.

    question -> model -> turn -> its calls checked and run -> outputs and the question again -> model -> ... -> answer

| module    | what is in it                                                                                    |
| --------- | ------------------------------------------------------------------------------------------------ |
| chat      | a model that answers messages: a loaded version, or one behind an OpenAI-compatible API          |
| toolbox   | what runs each tool of fedmed.tools, and says so where nothing does                              |
| served    | classification and report by a model                                                             |
| retrieval | passages of a folder of texts, ranked by BM25                                                    |
| external  | a tool of somebody else's, over HTTP                                                             |
| loop      | the steps, bounded, and the transcript of them                                                   |
"""
