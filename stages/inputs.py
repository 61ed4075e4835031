"""Which artifacts a step is made from: those that were named, and those that belong to them."""

from collections.abc import Callable, Iterable, Mapping

from artifacts import ArtifactError, ArtifactId, Manifest, Store
from stages.chain import CHAIN, NAMES, Step, step_of
from stages.plan import Plan


def inputs_of(
    step: Step,
    given: Mapping[str, str],
    store: Store,
    make: Callable[[Step, Mapping[str, ArtifactId]], ArtifactId],
    *,
    plan: Plan | None = None,
) -> dict[str, ArtifactId]:
    """The ids of a step's inputs. `given` may name some of them, "latest" being the latest of its kind.

    Any other is the one that the inputs found so far were made from, else the latest that the chain's stage made, with
    whatever config or (it and all it was made from) with those of a plan, and if there is one made from what they
    were made from; else it is made: `make(step, its inputs)`. One that must be made from others (`Step.of`) is the
    latest that is; where it is given, and they are not, they are what it was made from.
    """
    found = {role: store.resolve(id, kind=step.stage.inputs[role].kinds) for role, id in given.items()}
    for role in step.of.keys() & given.keys():
        made_from = store.manifest(found[role]).lineage.inputs
        for theirs, ours in step.of[role].items():
            if ours in step.inputs and theirs in made_from:
                found.setdefault(ours, made_from[theirs].id)
    # Inputs far down the chain first: they decide which of the others belong to them.
    plain = [role for role in step.inputs if role not in step.of]
    for role in sorted(plain, key=lambda role: NAMES.index(step.inputs[role]), reverse=True):
        if role not in found:
            producer = step_of(step.inputs[role])
            found[role] = (
                _ancestor(producer.name, found.values(), store)
                or _latest(producer.name, store, plan, beside=found.values())
                or make(producer, inputs_of(producer, {}, store, make, plan=plan))
            )
    for role, of in step.of.items():
        if role not in found:
            producer = step_of(step.inputs[role])
            theirs = {its: _through(ours, found, store) for its, ours in of.items()}
            made = _made_from(producer.name, theirs, store, plan, like=found.values())
            found[role] = made or make(producer, inputs_of(producer, theirs, store, make, plan=plan))
    return {role: found[role] for role in step.inputs}


def _latest(stage: str, store: Store, plan: Plan | None, *, beside: Iterable[str]) -> ArtifactId | None:
    made = [m for m in reversed(store.manifests()) if m.lineage.stage == stage and _is_planned(m, store, plan)]
    theirs: dict[str, set[str]] = {}
    for id in beside:
        for ancestor in store.ancestry(id):
            theirs.setdefault(ancestor.lineage.stage, set()).add(ancestor.id)

    def shares(id: ArtifactId) -> bool:
        return all(m.id in theirs.get(m.lineage.stage, {m.id}) for m in store.ancestry(id) if m.id != id)

    if theirs and (sharing := next((m.id for m in made if shares(m.id)), None)) is not None:
        return sharing
    return made[0].id if made else None


def _through(path: str, found: Mapping[str, ArtifactId], store: Store) -> ArtifactId:
    """The input of this role, or what it was made from in the role that stands behind a dot."""
    role, _, theirs = path.partition(".")
    if not theirs:
        return found[role]
    made_from = store.manifest(found[role]).lineage.inputs
    if theirs not in made_from:
        raise ArtifactError(f"{found[role]} was made from no {theirs!r}; name another {role}, or the input itself")
    return made_from[theirs].id


def _made_from(
    stage: str, inputs: Mapping[str, ArtifactId], store: Store, plan: Plan | None, *, like: Iterable[str]
) -> ArtifactId | None:
    """The latest that this stage made from these inputs among others; one of the settings of one of `like`, if any."""
    made = [
        manifest
        for manifest in reversed(store.manifests())
        if manifest.lineage.stage == stage
        and {role: ref.id for role, ref in manifest.lineage.inputs.items()}.items() >= inputs.items()
        and _is_planned(manifest, store, plan)
    ]
    settings = [known.config for known in (store.manifest(id).lineage for id in like) if known.stage == stage]
    alike = [manifest for manifest in made if manifest.lineage.config in settings]
    return next((manifest.id for manifest in [*alike, *made]), None)


def _is_planned(manifest: Manifest, store: Store, plan: Plan | None) -> bool:
    """Whether it and all it was made from have the plan's settings; of no plan, any have."""
    if plan is None:
        return True
    planned = {step.name: plan.config_of(step).model_dump(mode="json") for step in CHAIN}
    return all(m.lineage.config == planned.get(m.lineage.stage) for m in store.ancestry(manifest.id))


def _ancestor(stage: str, ids: Iterable[ArtifactId], store: Store) -> ArtifactId | None:
    """What this stage made, among all that these artifacts were made from; the newest if there are several."""
    manifests = {m.id: m for id in ids for m in store.ancestry(id) if m.lineage.stage == stage}
    return max(manifests, key=lambda id: manifests[id].lineage.sequence) if manifests else None
