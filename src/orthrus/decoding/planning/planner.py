"""The planner: before every pass it chooses how many drafts to verify, and how many blocks draft beside them.

It maximises tokens per second in the long run: what drafts at hand are worth follows from the cost table and from how
often drafts were right so far (`values`), and with that each pass is weighed by the confidence of the very drafts in
it. A pure function of cost table and history: it never looks at a clock.

Under the rule `rejection` each sequence plans as if it were alone, with blocks of full width, so that its draws do not
depend on its neighbours; what it offers depends on history and distributions, never on the draft itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from orthrus.config import DiffusionConfig
from orthrus.decoding.planning.acceptance import History
from orthrus.decoding.planning.cost_model import Array, CostModel
from orthrus.decoding.planning.policy import Policy, States
from orthrus.decoding.planning.prompt_lookup import LONGEST, Lookup
from orthrus.decoding.sequence import Draft, Sequence, Verdict

WIDTHS = (2, 3, 4, 6, 8, 12, 16, 24, 32)
MOST_LOOKED_UP = 8
RESOLVE_EVERY = 16
"""Verdicts between two solutions for the values of the states."""
AHEAD = 40
"""The probing budget of this many tokens may be spent before they are written; it is no more budget, only earlier."""
RESTING = 7
"""Passes after a plain one, while there are no drafts, that are plain without being weighed: weighing costs too."""
PLANNING = 2e-4
"""Seconds that planning a cycle takes by itself."""


@dataclass(frozen=True)
class Shape:
    """The next pass. Per sequence: drafts offered; blocks, for 0 .. blocks-1 accepted drafts; what its cycle is called.

    `redraft`: which sequences first take fresh drafts from a diffusion pass at their anchors; nobody where empty.
    """

    width: int
    offered: list[int]
    blocks: list[int]
    kinds: list[str]
    redraft: list[bool] = field(default_factory=list)


@dataclass
class Account:
    """What the planner keeps of one sequence; seconds by the cost table."""

    history: History
    lookup: Lookup = field(default_factory=Lookup)
    policy: Policy | None = None
    planned: tuple[int, int] = (0, 0)
    spent: float = 0.0
    earned: float = 0.0
    quiet: float = 0.0
    resting: int = 0

    def read(self, sequence: Sequence) -> None:
        """Index what was written since."""
        self.lookup.extend(sequence.tokens[len(self.lookup) - len(sequence.request.prompt) :])


class Planner:
    """Plans for the sequences of one decoding run.

    Args:
        diffusion: the view.
        width: rows of a block at most.
        costs: the cost table.
        alone: plan each sequence as if it were the only one (rule `rejection`).
        budget: the share of plain decoding's time by which a sequence may fall behind it while probing.
    """

    def __init__(
        self, diffusion: DiffusionConfig, width: int, costs: CostModel, *, alone: bool = False, budget: float = 0.03
    ) -> None:
        self.costs, self._width, self._alone, self._budget = costs, width, alone, budget
        self._trained = min(width, diffusion.trained_rows)
        self._plain = Shape(width, [0], [0], ["ar"], [False])
        self._accounts: dict[int, Account] = {}
        self._before: History | None = None
        self._beginning: tuple[History | None, int, Policy] | None = None

    def first_width(self, context: int) -> int:
        """Rows of the block that a prefill drafts with; 0 where drafting does not pay."""
        # alone: for this very context, as a sequence must not draft by its predecessors'; else for one near it
        near = context if self._alone else 1 << context.bit_length()
        if self._beginning is None or self._beginning[0] is not self._before or self._beginning[1] != near:
            self._beginning = self._before, near, self._solve(self._new_history(), 1, near)
        policy = self._beginning[2]
        extra = self.costs.ar_and_diffuse(1, 1, 1, policy.width, context) - self.costs.ar(1, 1, context)
        return policy.width if policy.after[1] > policy.rate * extra else 0

    def choose(self, batch: list[Sequence], *, after: Shape | None = None) -> Shape:
        """The next pass; may replace a sequence's drafts by looked-up ones.

        `after`: the plan by which some sequences have just drafted anew. Those plan again; each of the others too where
        all share one pass, but not where each plans alone: who its neighbours are must not reach it.
        """
        drew = after.redraft if after else [False] * len(batch)
        if self._share(batch) > 1:
            pairs = [(sequence, self._account(sequence, len(batch), again=after is not None)) for sequence in batch]
            return self._joint(pairs, drew, again=after is not None)
        shapes = [
            self._single(sequence, again=after is not None, drew=fresh)
            if after is None or fresh
            else Shape(after.width, [after.offered[slot]], [after.blocks[slot]], [after.kinds[slot]], [False])
            for slot, (sequence, fresh) in enumerate(zip(batch, drew, strict=True))
        ]
        if len(shapes) == 1:
            return shapes[0]
        return Shape(
            self._width,
            [shape.offered[0] for shape in shapes],
            [shape.blocks[0] for shape in shapes],
            [shape.kinds[0] for shape in shapes],
            [shape.redraft[0] for shape in shapes],
        )

    def learn(self, batch: list[Sequence], drafts: list[Draft], shape: Shape, kept: list[Verdict]) -> None:
        """Enter the verdicts on the drafts, and what the pass cost each sequence by the table."""
        share = self._share(batch)
        for slot, (sequence, verdict) in enumerate(zip(batch, kept, strict=True)):
            account, offered, blocks = self._accounts[sequence.index], shape.offered[slot], shape.blocks[slot]
            stopped = sequence.finish_reason is not None
            if offered:
                account.history.observe(drafts[slot], verdict.accepted if stopped else offered, verdict.accepted)
            plain = self.costs.ar(share, 1, sequence.length) / share
            account.spent += PLANNING + (plain if shape is self._plain else self._price(shape, slot, sequence.length))
            account.earned += len(verdict.tokens) * plain
            account.quiet = 0.0 if blocks or shape.kinds[slot] == "two-pass" else account.quiet + plain
            if stopped:
                if not self._alone:
                    self._before = account.history
                del self._accounts[sequence.index]

    def _share(self, batch: list[Sequence]) -> int:
        """Over how many sequences the price of a pass is shared out."""
        return 1 if self._alone else len(batch)

    def _account(self, sequence: Sequence, share: int, *, again: bool) -> Account:
        """A sequence's account, brought up to date with its tokens and the drafts at hand."""
        account = self._accounts.get(sequence.index)
        if account is None:
            account = self._accounts[sequence.index] = Account(self._new_history())
            account.lookup.extend(list(sequence.request.prompt))
        account.read(sequence)
        if not again:
            if sequence.ahead.start == 1:
                account.history.observe_agreement(met=sequence.ahead.kind == "agrees")
            history, (sharers, due) = account.history, account.planned
            if account.policy is None or sharers != share or history.verdicts >= due:
                account.policy = self._solve(history, share, sequence.length)
                account.planned = share, history.verdicts + RESOLVE_EVERY
        tokens, length = account.lookup.propose(MOST_LOOKED_UP)
        if tokens:
            found = Draft(tokens, None, "lookup", 0, [length / LONGEST] * len(tokens))
            history = account.history
            if history.chances(found).cumprod().sum() > history.chances(sequence.ahead).cumprod().sum():
                sequence.ahead = found
        return account

    def _rests(self, sequence: Sequence) -> bool:
        """Whether a sequence takes another plain pass without further thought: the best there was a moment ago."""
        account = self._accounts.get(sequence.index)
        if account is None or not account.resting or sequence.ahead.tokens:
            return False
        account.read(sequence)
        if account.lookup.found:
            return False
        account.resting -= 1
        return True

    def _single(self, sequence: Sequence, *, again: bool, drew: bool) -> Shape:
        """A pass for one sequence."""
        if not again and self._rests(sequence):
            return self._plain
        account = self._account(sequence, 1, again=again)
        shape = self._joint([(sequence, account)], [drew], again=again)
        account.resting = 0 if sequence.ahead.tokens or shape.blocks[0] or shape.redraft[0] else RESTING
        return shape

    def _joint(self, pairs: list[tuple[Sequence, Account]], fresh: list[bool], *, again: bool) -> Shape:
        """One pass for all these sequences, each with drafts and blocks of its own: their worth against its price."""
        B, costs = len(pairs), self.costs
        context = sum(sequence.length for sequence, _ in pairs) / B
        policies = [account.policy for _, account in pairs if account.policy is not None]
        rate, width = sum(policy.rate for policy in policies) / B, max(policy.width for policy in policies)
        row = (costs.ar(B, 8, context) - costs.ar(B, 1, context)) / 7 / B
        survival = [account.history.chances(sequence.ahead).cumprod() for sequence, account in pairs]
        survival = [chances[chances > rate * row] for chances in survival]
        rows = B + sum(len(chances) for chances in survival)

        def price(blocks: int) -> float:
            return costs.ragged(B, rows, blocks, width, context)

        worths = [policy.left(chances) for policy, chances in zip(policies, survival, strict=True)]
        blocks = _best_blocks(worths, rate, price)
        early = AHEAD * costs.ar(B, 1, context) / B
        plain, allowed = price(0), sum(a.earned + self._budget * max(a.earned, early) - a.spent for _, a in pairs)
        for slot, (_, account) in enumerate(pairs):  # a probe: has the text become one that can be drafted?
            if not blocks[slot] and account.quiet * self._budget > price(sum(blocks) + 1) - price(sum(blocks)):
                blocks[slot] = 1
        if price(sum(blocks)) - plain > allowed:
            blocks = [0] * B
        redraft = [False] * B
        if not again:
            share = rate * price(sum(blocks)) / B
            gains = [
                policy.fresh - (1 + float(chances.sum()) + worth[n] - share)
                for policy, chances, worth, n in zip(policies, survival, worths, blocks, strict=True)
            ]
            redraft = _redrafted(gains, rate, lambda count: costs.diffuse(count, width, context), allowed)
        kinds = [
            _kind(sequence.ahead, len(chances), n, drew=drew)
            for (sequence, _), chances, n, drew in zip(pairs, survival, blocks, fresh, strict=True)
        ]
        return Shape(width, [len(chances) for chances in survival], blocks, kinds, redraft)

    def _price(self, shape: Shape, slot: int, context: float) -> float:
        """What a pass of this shape costs one of its sequences: an equal share, or what it would cost alone."""
        slots = [slot] if self._alone else range(len(shape.offered))
        drew = sum(shape.kinds[n] == "two-pass" for n in slots)
        rows, blocks = sum(1 + shape.offered[n] for n in slots), sum(shape.blocks[n] for n in slots)
        price = self.costs.ragged(len(slots), rows, blocks, shape.width, context)
        return (price + (self.costs.diffuse(drew, shape.width, context) if drew else 0.0)) / len(slots)

    def _new_history(self) -> History:
        return History(self._trained, self._before)

    def _solve(self, history: History, share: int, context: float) -> Policy:
        """The best policy over all widths."""
        widths = [self._width] if self._alone else sorted({*[w for w in WIDTHS if w < self._width], self._width})
        states = [States(history.by_row(), width, self.costs, share, context) for width in widths]
        found = [problem.best() for problem in states]
        return max(found, key=lambda policy: policy.rate)


def _best_blocks(worths: list[Array], rate: float, price: Callable[[int], float]) -> list[int]:
    """How many blocks each sequence gets: the best number for all alike, then the best for each beside the others.

    worths: per sequence, what 0, 1, ... blocks leave it, in tokens; price: seconds of a pass by all blocks in it.
    """

    def gain(blocks: list[int]) -> float:
        return sum(float(worth[n]) for worth, n in zip(worths, blocks, strict=True)) - rate * price(sum(blocks))

    alike = [[min(n, len(worth) - 1) for worth in worths] for n in range(max(len(worth) for worth in worths))]
    best = max(alike, key=gain)
    if len(worths) > 1:
        for slot, worth in enumerate(worths):
            best = max(([*best[:slot], n, *best[slot + 1 :]] for n in range(len(worth))), key=gain)
    return best


def _redrafted(gains: list[float], rate: float, price: Callable[[int], float], allowed: float) -> list[bool]:
    """Who takes part in a diffusion pass first: those who gain most, as many as it pays for and the budget allows."""
    order = sorted(range(len(gains)), key=lambda slot: -gains[slot])
    total, best, chosen = 0.0, 0.0, 0
    for count, slot in enumerate(order, start=1):
        total += gains[slot]
        if total - rate * price(count) > best and price(count) <= allowed:
            best, chosen = total - rate * price(count), count
    return [slot in order[:chosen] for slot in range(len(gains))]


def _kind(draft: Draft, offered: int, blocks: int, *, drew: bool) -> str:
    if drew:
        return "two-pass"
    if blocks:
        return "one-pass"
    return {"lookup": "lookup"}.get(draft.kind, "one-pass") if offered else "ar"
