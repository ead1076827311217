"""Which variants of a method an ablation runs: one change each, or combinations of switches.

A method declares its switches (`@method(switches=...)`): for a setting, the values to try
instead, "off" first. No torch here.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product

from fusionbench.api.errors import UserError, unknown
from fusionbench.api.register import Setting
from fusionbench.records.history import Design, Variant
from fusionbench.registry.catalog import Catalog, MethodCard
from fusionbench.registry.selection import Chosen, checked, select_methods, shown
from fusionbench.stats.factorial import LARGEST, fraction


def base_of(catalog: Catalog, name: str, settings: Mapping[str, Mapping[str, object]]) -> Chosen:
    """The one method that is taken apart. Raises UserError for none, several, or no switches."""
    found = select_methods(catalog, [name], settings)
    if len(found) != 1:
        raise UserError(f"{name!r} means {len(found)} methods", "ablate takes one apart at a time")
    if not found[0].card.switches:
        with_some = {card.family for card in catalog.methods.values() if card.switches}
        raise UserError(
            f"{found[0].card.family!r} declares no switches",
            f"add switches={{...}} to its @method line; these have some: {_list(with_some)}",
        )
    return found[0]


def one_factor_out(catalog: Catalog, base: Chosen, switches: Sequence[str] = ()) -> Design:
    """The full method, and for each switch each of its other levels, one change at a time.

    `switches` restricts it to some of them. Raises UserError for an unknown switch, for one that is
    off already, and where nothing is left to switch off.
    """
    idle = _idle(base, base.settings)
    chosen = [_known(base, name) for name in switches]
    for switch in chosen:
        if not _levels(base, switch):
            raise _off_already(base, switch, "leave it out")
    chosen = chosen or [name for name in base.card.switches if name not in idle]
    variants = [Variant(label=_label(catalog, base, {}))]
    for switch in chosen:
        for level in _levels(base, switch):
            label = _label(catalog, base, {switch: level})
            variants.append(Variant(label=label, switch=switch, level=shown(level)))
    if len(variants) == 1:
        raise _off_already(base, ", ".join(base.card.switches), "ablate one that has a switch on")
    return Design(kind="one_factor_out", method=base.label, variants=tuple(variants))


def factorial(catalog: Catalog, base: Chosen, switches: Sequence[str]) -> Design:
    """Combinations of 2 to 8 switches; above 4 the fraction of 16 that `stats` can take apart.

    A switch is on as in the method itself, and off at its first other level, or at the one that is
    named: `memory=none`. Where a switch can do nothing, one cell is run, which counts as off and
    keeps the method's own level: a full design has fewer cells then. Raises UserError.
    """
    off = dict(_off(base, text) for text in switches)
    if not 2 <= len(off) <= LARGEST:
        raise UserError(
            f"a factorial needs 2 to {LARGEST} switches, got {len(off)}",
            f"{base.card.family} has: {_list(base.card.switches)}",
        )
    full = len(off) <= 4
    rows = list(product((True, False), repeat=len(off))) if full else fraction(len(off))
    kept = [row for row in rows if not _is_void(base, off, row)]
    for column, name in enumerate(off):
        if len({row[column] for row in kept}) < 2:
            raise UserError(
                f"{name!r} can do nothing in any cell: {base.label} has switched it off",
                "leave it out",
            )
    if not full and len(kept) < len(rows):
        raise UserError(
            f"in {len(rows) - len(kept)} of these cells a switch can do nothing, and a fraction "
            "needs all of its cells",
            "take at most 4 switches, or other levels, such as memory=rebuilt",
        )
    variants = tuple(
        Variant(label=_label(catalog, base, _effective(base, _changes(off, row))), on=row)
        for row in kept
    )
    named = tuple(f"{name}={shown(level)}" for name, level in off.items())
    skipped = len(rows) - len(kept)
    return Design(
        kind="factorial", method=base.label, variants=variants, switches=named, skipped=skipped
    )


def _changes(off: Mapping[str, Setting], on: Sequence[bool]) -> dict[str, Setting]:
    return {name: level for (name, level), state in zip(off.items(), on, strict=True) if not state}


def _effective(base: Chosen, changes: Mapping[str, Setting]) -> dict[str, Setting]:
    """The changes without those of switches that can do nothing, so that records are reused."""
    kept = dict(changes)
    for name in changes:
        without = {key: level for key, level in kept.items() if key != name}
        if name in _idle(base, {**base.settings, **without}):
            kept = without
    return kept


def _off(base: Chosen, text: str) -> tuple[str, Setting]:
    name, equals, value = text.partition("=")
    switch = _known(base, name.strip())
    if not equals:
        if not (levels := _levels(base, switch)):
            hint = f"leave it out, or name a level: {switch}=..."
            raise _off_already(base, switch, hint)
        return switch, levels[0]
    level = checked(base.card.name, base.card.settings, {switch: value.strip()})[switch]
    if level == base.settings[switch]:
        raise UserError(f"{switch}={shown(level)} is the method itself, so it cannot be off")
    return switch, level


def _off_already(base: Chosen, switch: str, hint: str) -> UserError:
    return UserError(f"{base.label} has switched {switch} off already", hint)


def _known(base: Chosen, name: str) -> str:
    if name not in base.card.switches:
        raise unknown("switch", name, base.card.switches)
    return name


def _levels(base: Chosen, switch: str) -> tuple[Setting, ...]:
    """The declared levels in the setting's type, without the one that the method has already."""
    declared = base.card.switches[switch]
    typed = (checked(base.label, base.card.settings, {switch: level})[switch] for level in declared)
    return tuple(level for level in typed if level != base.settings[switch])


def _is_void(base: Chosen, off: Mapping[str, Setting], on: Sequence[bool]) -> bool:
    """True if a switch that is on in this cell has no effect there."""
    idle = _idle(base, {**base.settings, **_changes(off, on)})
    return any(state and name in idle for name, state in zip(off, on, strict=True))


def _idle(base: Chosen, settings: Mapping[str, Setting]) -> set[str]:
    """The switches without effect under these settings."""
    return {
        switch
        for given, switches in base.card.idle
        if all(settings[name] == value for name, value in given.items())
        for switch in switches
    }


def _label(catalog: Catalog, base: Chosen, changes: Mapping[str, Setting]) -> str:
    """The shortest name for these settings, so that a registered variant's records are reused."""
    wanted = {**base.settings, **changes}
    for card in _family(catalog, base.card):
        if card.as_run == wanted:
            return card.name
    card = base.card
    changed = ((name, value) for name, value in wanted.items() if value != card.as_run.get(name))
    inline = ",".join(f"{name}={shown(value)}" for name, value in sorted(changed))
    return f"{card.name}[{inline}]" if inline else card.name


def _family(catalog: Catalog, card: MethodCard) -> Iterator[MethodCard]:
    """The method itself, then the other names of its class."""
    yield card
    for other in catalog.methods.values():
        if (other.file, other.cls, other.family) == (card.file, card.cls, card.family):
            yield other


def _list(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"
