"""What a run's events add up to, and each of them as one line of text. Knows nothing of the screen.

    progress = Progress(rounds=5, sites={"north": SiteProgress(), "valley": SiteProgress()})
    for event in EventReader(path).new():          # kinds and fields: see aggregator/watching/events.py
        progress.handle(event)
        print(plain_line(event))
    progress.waits_for(time.time())                # "valley (offline for 12 s), at most 248 s"

Events whose kind is not known are passed over, so that a newer aggregator does not break an older view.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from aggregator.reports.page import duration, percent


@dataclass
class SiteProgress:
    """One site: `state` is waited for, joined, training, replied, offline or left out; offline since `since`, `before` that."""

    state: str = "waited for"
    detail: str = ""
    before: str = ""
    since: float = 0.0
    num_patients: int | None = None
    epsilon: float | None = 0.0


@dataclass
class Progress:
    """What the events so far add up to.

    Attributes:
        committed: the last round on disk.
        ends: when the open round's deadline is, in seconds since 1970; 0 while none is open.
        accuracies: after round 0 (zero-shot), 1, 2, ...
    """

    rounds: int
    sites: dict[str, SiteProgress]
    round: int = 0
    committed: int = 0
    ends: float = 0.0
    state: str = "starting"
    quorum: int = 0
    accuracies: list[float] = field(default_factory=list)

    def handle(self, event: Mapping[str, Any]) -> None:
        """Take in one event."""
        update = getattr(self, f"_on_{event.get('kind')}", None)
        if update is not None:
            update(event)

    def waits_for(self, now: float) -> str:
        """Who the open round waits for and how long at most, such as `valley (offline for 12 s), at most 248 s`."""
        names = []
        for name, site in self.sites.items():
            if site.state == "offline":
                names.append(f"{name} (offline for {max(0.0, now - site.since):.0f} s)")
            elif site.state == "training":
                names.append(name)
        if not self.ends or not names:
            return ""
        return f"{', '.join(names)}, at most {max(0.0, self.ends - now):.0f} s"

    def site(self, name: str) -> SiteProgress:
        """The site of this name; one that nobody announced is added."""
        return self.sites.setdefault(name, SiteProgress())

    def _on_waiting(self, event: Mapping[str, Any]) -> None:
        self.state, self.quorum = "waiting for sites", event["quorum"]
        for name in event["sites"]:
            if self.site(name).state == "waited for":
                self.site(name).state = "joined"

    def _on_joined(self, event: Mapping[str, Any]) -> None:
        site = self.site(event["site"])
        site.state, site.detail, site.num_patients = "joined", "", event["num_patients"]

    def _on_zero_shot(self, event: Mapping[str, Any]) -> None:
        self.accuracies.append(event["accuracy"])

    def _on_round_started(self, event: Mapping[str, Any]) -> None:
        self.round, self.rounds, self.state = event["round"], event["rounds"], "training"
        self.ends = event.get("time", 0.0) + event["deadline_s"] if "deadline_s" in event else 0.0
        for name in event["sites"]:
            self.site(name).state, self.site(name).detail = "training", ""

    def _on_reply(self, event: Mapping[str, Any]) -> None:
        site = self.site(event["site"])
        site.state, site.detail = "replied", f"after {duration(event['seconds'])}"
        site.epsilon = None if event["epsilon"] is None or event["epsilon"] < 0 else event["epsilon"]

    def _on_offline(self, event: Mapping[str, Any]) -> None:
        site = self.site(event["site"])
        if site.state not in ("replied", "offline"):  # what it has answered counts
            site.before, site.since = site.state, event.get("time", 0.0)
            site.state, site.detail = "offline", "waited for a while"

    def _on_online(self, event: Mapping[str, Any]) -> None:
        site = self.site(event["site"])
        if site.state == "offline":
            site.state, site.detail = site.before, "was offline"

    def _on_left_out(self, event: Mapping[str, Any]) -> None:
        site = self.site(event["site"])
        site.state, site.detail = "left out", event["reason"]

    def _on_round_committed(self, event: Mapping[str, Any]) -> None:
        self.state = "round skipped: too few replies" if event["skipped"] else "round committed"
        self.committed, self.ends = event["round"], 0.0
        if event["accuracy"] is not None:
            self.accuracies.append(event["accuracy"])

    def _on_evaluation_started(self, event: Mapping[str, Any]) -> None:
        self.state, self.ends = "asking the sites for held-out scores", 0.0
        for name in event["sites"]:
            self.site(name).state, self.site(name).detail = "evaluating", ""

    def _on_evaluated(self, event: Mapping[str, Any]) -> None:
        self.state = "held-out scores committed"
        for site in self.sites.values():
            if site.state == "evaluating":
                site.state = "replied"

    def _on_interrupted(self, _: Mapping[str, Any]) -> None:
        self.state, self.ends = "the server app lost its SuperLink", 0.0

    def _on_restarting(self, event: Mapping[str, Any]) -> None:
        self._wait_for_all()
        self.state = f"{event['message']}; starting it again ({event['attempt']} of {event['limit']})"

    def _on_resumed(self, event: Mapping[str, Any]) -> None:
        self._wait_for_all()
        self.state, self.committed = f"going on after round {event['round']}", event["round"]

    def _wait_for_all(self) -> None:
        """The next server app asks every site anew."""
        self.ends = 0.0
        for site in self.sites.values():
            site.state, site.detail = "waited for", ""

    def _on_finished(self, _: Mapping[str, Any]) -> None:
        self.state = "all rounds committed"

    def _on_failed(self, _: Mapping[str, Any]) -> None:
        self.state, self.ends = "failed", 0.0


def plain_line(event: Mapping[str, Any]) -> str:
    """One event as one line; "" for an event that needs none."""
    kind = event.get("kind")
    if kind == "waiting":
        missing = ", ".join(site for site in event["expected"] if site not in event["sites"])
        names = ", ".join(event["sites"]) or "none yet"
        return f"waiting for {missing} (quorum {event['quorum']}); here: {names}"
    if kind == "joined":
        return f"{event['site']} joined with {event['num_patients'] or 'an untold number of'} patients"
    if kind == "zero_shot":
        return f"zero-shot accuracy {percent(event['accuracy'])}"
    if kind == "round_started":
        stage = f" ({event['stage']})" if event.get("stage") else ""
        return f"round {event['round']} of {event['rounds']}{stage}: training at {', '.join(event['sites'])}"
    if kind == "reply":
        spent = "no bound" if event["epsilon"] is None or event["epsilon"] < 0 else f"{event['epsilon']:.2f}"
        return f"round {event['round']}: {event['site']} replied after {duration(event['seconds'])}, epsilon {spent}"
    if kind == "bounded":
        return f"round {event['round']}: the update of {event['site']} was {event['norm']:.3g} long, taken as {event['bound']:.3g}"
    if kind in ("offline", "online"):
        return f"round {event['round']}: {event['site']} {'is offline' if kind == 'offline' else 'is back'}"
    if kind == "waiting_for":
        offline = f"; offline: {', '.join(event['offline'])}" if event["offline"] else ""
        return (
            f"round {event['round']}: waiting for {', '.join(event['sites'])}, at most {event['left_s']:.0f} s{offline}"
        )
    if kind == "late":
        return f"round {event['round']}: {event['site']} answered after its end; the answer is dropped"
    if kind == "left_out":
        return f"round {event['round']}: {event['site']} left out: {event['reason']}"
    if kind == "warning":
        return f"round {event['round']}: WARNING: {event['message']}"
    if kind == "round_committed":
        outcome = "skipped, the model stays" if event["skipped"] else "committed"
        return (
            f"round {event['round']} {outcome}: accuracy {percent(event['accuracy'])}, {event['replies']} replies, "
            f"{duration(event['seconds'])}"
        )
    if kind == "judged":
        stage = f"stage {event['stage']}" if event["stage"] else "training"
        return f"round {event['round']}: {stage} ends: {event['verdict']}"
    if kind == "evaluation_started":
        return f"held-out patients: asking {', '.join(event['sites']) or 'nobody, no site is here'}"
    if kind == "evaluated":
        told = ", ".join(_score_text(name, score) for name, score in event["scores"].items())
        return f"held-out patients, {event['replies']} sites: {told}"
    if kind == "restarting":
        again = f"starting it again in {event['wait_s']:g} s ({event['attempt']} of {event['limit']})"
        return f"{event['message']}; {again}"
    if kind == "resumed":
        return f"going on after round {event['round']} of {event['rounds']}"
    if kind == "interrupted":
        return f"the server app lost its SuperLink: {event['message']}"
    return {"finished": "all rounds are committed", "failed": f"failed: {event.get('message')}"}.get(str(kind), "")


def _score_text(name: str, score: Mapping[str, Any]) -> str:
    if score["value"] is None:
        return f"{name} too few to tell"
    worst = f" (worst {score['worst_site']} {percent(score['worst'])})" if score["worst_site"] else ""
    return f"{name} {percent(score['value'])} +- {percent(score['error'])}{worst}"
