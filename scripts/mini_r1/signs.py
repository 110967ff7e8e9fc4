"""Signs of search in a model's reasoning: what people call the "aha moment", counted by a small lexicon.

Four counts per completion, all from the text between `<think>` and `</think>`, by regular expressions that anybody can
read; no judge model. They are made for English reasoning about numbers and for the tiny model's notation alike:

| sign | what it counts | in words | tiny model |
|---|---|---|---|
| attempts | lines or sentences that state a result | "44 + 19 = 63", "which gives us 63" | `44+19=63` |
| verifications | results that are held against the target | "= 98, this works", "let me check" | `yes!` |
| self-corrections | the reasoning turning on itself | "too high", "not right", "let me try", "wait" | `too low` |
| sub-goals | intermediate aims, often worked out backwards | "I need 54 more", "98 - 35 leaves 63" | has none |

Counts of words say that something is written, not that it is meant: read them beside success and length, and read the
samples.
"""

from __future__ import annotations

import re

# One attempt is one line or sentence that states a result: "44 + 19 = 63, 63 + 35 = 98" is one, whatever its length.
RESULT = re.compile(r"(?:=|\bequals\b|\bgives?(?: us| me)?\b|\bI get\b|\bwe get\b)\s*-?\d", re.IGNORECASE)
CLAUSE_END = re.compile(r"[\n;]|[.!?](?=\s|$)")

CORRECTION = re.compile(
    r"\btoo (?:high|low|big|small|large|much|far)\b"
    r"|\b(?:doesn['’]t|does not|didn['’]t|won['’]t|isn['’]t|not)"
    r" (?:work(?:ing)?|right|correct|enough|quite right|what)\b"
    r"|\blet(?:['’]s| me| us) (?:try|re-?evaluate|re-?consider|correct|go back|start over)\b"
    r"|\b(?:wait|hmm|actually|instead|however|alternatively|another (?:way|approach|combination))\b"
    # A bare "no" as a verdict on what was just tried, not the determiner of "no solution" or "no more numbers".
    r"|(?:^|[\n.!?,;]\s{0,3})no(?=\s{0,3}(?:[,.!;]|$))",
    re.IGNORECASE | re.MULTILINE,
)

VERIFICATION = re.compile(
    r"\b(?:this|that|it|which) (?:works|is (?:correct|right|the target)|(?:matches|equals|hits|reaches) the target)\b"
    r"|\b(?:let(?:['’]s| me| us)|I(?:['’]ll| will| should| need to)|to) (?:double[- ]?)?(?:check|verify|confirm)\b"
    r"|\b(?:checking|verifying)\b"
    r"|\b(?:matches|equals|hits|reaches|is) (?:the|our|my) (?:target|goal|desired)\b"
    r"|\byes ?!"
    r"|(?:^|[\n.,;]\s{0,3})(?:yes|correct|perfect)(?=\s{0,3}(?:[,.!;]|$))"
    r"|✓|✔|✅",
    re.IGNORECASE | re.MULTILINE,
)

SUBGOAL = re.compile(
    r"\b(?:I|we)(?:['’]d)?(?: still| now| just)? need (?:to (?:get|make|reach|find|have|add|subtract) )?"
    r"(?:another )?-?\d+"
    r"|\bneed (?:to (?:get|make|reach|find|form|create))\b"
    r"|\b-?\d+ (?:more|left|to go)\b"
    r"|\b(?:remaining|remainder|leaves|leaving|what is left)\b"
    r"|\b(?:first|next|then),? (?:I|we|let(?:['’]s| me| us))(?:['’]ll| will| can| need to| try to)? ?"
    r"(?:get|make|find|form|build|create)\b"
    r"|\bif (?:I|we) (?:can )?(?:get|make|find|form|build|create)\b"
    r"|\bwork(?:ing)? backwards?\b"
    r"|\bget(?:ting)? (?:close|closer) to\b",
    re.IGNORECASE,
)


def count_attempts(reasoning: str) -> int:
    """How many lines or sentences of the reasoning state a result (`= 63`, `gives 63`, `I get 63`).

    Example:
        >>> count_attempts("44 + 19 = 63, 63 + 35 = 98. Then 44 - 19 gives 25")
        2
    """
    return sum(RESULT.search(clause) is not None for clause in CLAUSE_END.split(reasoning))


SIGNS = {
    "attempts": count_attempts,
    "verifications": lambda reasoning: len(VERIFICATION.findall(reasoning)),
    "self_corrections": lambda reasoning: len(CORRECTION.findall(reasoning)),
    "subgoals": lambda reasoning: len(SUBGOAL.findall(reasoning)),
}
