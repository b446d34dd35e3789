"""FedMed's Flower app bundle. It ships no code that trains, reads data or opens a file."""
