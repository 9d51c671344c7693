"""
verdict - the last word: may hosts share a queue here, one host alone, or nobody

Pure: who has the same facts has the same verdict.
See also: judge, judge_together, settings, report.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from orchestrator.doctor.facts import Examined
from orchestrator.doctor.findings import Finding, counted
from orchestrator.doctor.judge import judge
from orchestrator.doctor.judge_together import absent, judge_together
from orchestrator.doctor.settings import Setting, as_toml, settings

Word = Literal["good", "one host", "not safe"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """*word* for scripts, *sentence* for persons; *toml* is what *settings* are in a configuration."""

    word: Word
    sentence: str
    findings: list[Finding]
    settings: list[Setting]
    toml: str

    def is_as_asked(self, others: int) -> bool:
        """Whether a queue may be had as it was asked for: here, or with *others*."""
        return self.word == "good" or (self.word == "one host" and not others)


def verdict(examined: Examined) -> Verdict:
    """Judge everything."""
    findings = list(judge(examined.hosts))
    if examined.together is not None:
        findings += judge_together(examined.hosts, examined.together)
    elif examined.absent:
        findings.append(absent(examined.absent))
    word, sentence = _word(examined, findings)
    found = [] if word == "not safe" else settings(examined)
    return Verdict(word, _with(sentence, findings, found), findings, found, as_toml(examined, found))


def _word(examined: Examined, findings: list[Finding]) -> tuple[Word, str]:
    unsafe = _because(findings, "host")
    if unsafe:
        return "not safe", f"not safe, because {unsafe}"
    alone = _because(findings, "hosts")
    if alone:
        return "one host", f"good for one host only, because {alone}"
    mount = examined.hosts[0].mount
    if examined.together is None:
        if mount is not None and mount.network is None:
            return "one host", f"good for this host: {mount.kind} is a filesystem of one machine"
        reason = "no other came" if examined.absent else "with others it was not tried: see --peer"
        return "one host", f"good for this host; {reason}"
    machines = len({host.machine for host in examined.hosts})
    if machines < len(examined.hosts):
        if mount is not None and mount.network is None and machines == 1:
            reason = f"all doctors ran on one, and {mount.kind} is a filesystem of one machine"
        elif machines == 1:
            reason = "all doctors ran on one: no two machines were compared"
        else:
            reason = f"{len(examined.hosts)} doctors ran on {machines} machines: start one on each"
        return "one host", f"good for one host only, because {reason}"
    return "good", "good: any number of hosts may share a queue here"


def _with(sentence: str, findings: list[Finding], found: list[Setting]) -> str:
    """*sentence* with what it must not be read without."""
    if any(one.key == "lease_timeout" for one in found):
        sentence += ", with the settings below"
    warnings = sum(one.level == "warning" for one in findings)
    return f"{sentence} ({counted(warnings, 'warning')})" if warnings else sentence


def _because(findings: list[Finding], scope: str) -> str:
    return "; and ".join(dict.fromkeys(one.because for one in findings if one.level == "failed" and one.scope == scope))
