"""What is common to files of tensors: their count against the config's."""

from __future__ import annotations

from worthit.spec.model import ModelSpec


def mismatch(model: ModelSpec, n_params: int) -> tuple[str, ...]:
    """Both counts where those of the tensors and of the config differ; nothing where they agree."""
    # A look upwards, the check that makes a file's model believable: counting lives in `cost`.
    from worthit.cost.params import count_params

    counted = count_params(model).total
    if counted == n_params:
        return ()
    share = abs(n_params - counted) / counted
    more = "more" if n_params > counted else "fewer"
    return (
        f"the tensors hold {n_params:,} parameters, {share:.2%} {more} than the {counted:,} that "
        "the model is read as: extra heads, encoders or layers, or a config that is not theirs",
    )
