"""Expert parallelism: each device keeps some of the experts, tokens travel to theirs.

Changes: `layout.expert`; if tensor parallelism held those devices, its degree shrinks.
Relieves: memory and reading of experts by one device.
Does nothing when: the model is dense, or all experts fit and are read by one device fast enough.
Costs: two all-to-alls a layer; the most loaded device sets the pace.

Held equal: the devices. Attention runs on each for its own sequences (data parallel).
"""

from __future__ import annotations

from worthit.errors import NotApplicable
from worthit.spec.case import Case
from worthit.spec.model import MoE
from worthit.techniques._change import with_layout
from worthit.techniques._record import Evidence, Source, Technique
from worthit.techniques.parallel._devices import divisors, free_devices, require_devices

LEPIKHIN_2020 = Source(
    cite="Lepikhin et al. 2020",
    title="GShard: Scaling Giant Models with Conditional Computation and Automatic Sharding",
    id="arXiv:2006.16668",
    where="section 3",
)
DEEPSEEK_2024 = Source(
    cite="DeepSeek-AI 2024",
    title="DeepSeek-V3 Technical Report",
    id="arXiv:2412.19437",
    where="sections 3.2 and 3.4",
)
DEEPSEEK_2025 = Source(
    cite="DeepSeek-AI 2025",
    title="Insights into DeepSeek-V3: Scaling Challenges and Reflections on Hardware for AI "
    "Architectures",
    id="arXiv:2505.09343",
    where="section 2.3.2",
)


def apply(case: Case, *, degree: int | None = None) -> Case:
    """Return `case` with its experts over `degree` devices; None: the widest link domain."""
    experts = [f.n_experts for f in case.model.ffns if isinstance(f, MoE)]
    if not experts:
        raise NotApplicable(
            f"expert-parallel spreads experts; every feed-forward of {case.model.name} is dense"
        )
    require_devices(case, "expert-parallel")
    layout, device = case.hardware.layout, case.hardware.device
    free = free_devices(case, layout.pipeline, layout.context)
    # A stated degree may cross link domains; by default it does not.
    degrees = [
        d
        for d in divisors(free, free if degree else device.link_domain)
        if all(n % d == 0 for n in experts) and degree in (None, d)
    ]
    if not degrees:
        raise NotApplicable(
            f"expert-parallel needs a degree that divides the experts {tuple(experts)} and the "
            f"{free} devices it may use, within a link domain of {device.link_domain}; got "
            f"{degree or 'none'}"
        )
    chosen = degrees[-1]
    if layout.tensor is None:
        return with_layout(case, expert=chosen, tensor=1)
    return with_layout(case, expert=chosen, tensor=min(layout.tensor, free // chosen))


def is_present(case: Case) -> bool:
    """Whether experts stand on several devices already."""
    return case.hardware.layout.expert > 1


def remove(case: Case) -> Case:
    """Return `case` with all experts on each replica's devices."""
    return with_layout(case, expert=1)


TECHNIQUE = Technique(
    id="expert-parallel",
    name="Expert parallelism",
    relieves=("weight-capacity", "decode-weights"),
    bottleneck=(
        "Experts are most of the parameters: one device can neither hold them nor read those that "
        "its batch touches."
    ),
    apply=apply,
    is_present=is_present,
    remove=remove,
    adoption="drop-in",
    cost_of_adoption=(
        "An engine with all-to-all kernels, and balanced routing; redundant copies of busy experts "
        "in large services."
    ),
    nothing_when=(
        "The model is dense, there is one device, or batches are so small that each token's few "
        "experts are all that is read anyway."
    ),
    pitfalls=(
        "Time is that of the busiest device, not the mean: skewed routing gives the gain back.",
        "Every token is sent and received once an expert and layer: at 50 GB/s that alone bounds "
        "DeepSeek-V3 to 67 tokens/s a sequence.",
        "Small batches leave most experts without a token: it needs many sequences together.",
        "With attention data parallel, each device holds all of the dense weights.",
    ),
    sources=(LEPIKHIN_2020, DEEPSEEK_2024, DEEPSEEK_2025),
    evidence=(
        Evidence(
            claim="Sending over 50 GB/s alone takes 14.76 ms a token for DeepSeek-V3, 67 tokens/s: "
            "the bound of the links, whatever the accelerators.",
            source=DEEPSEEK_2025,
        ),
    ),
    orientation={
        "en": "In a mixture of experts each token uses a few of many feed-forwards. Expert "
        "parallelism gives each device some of them and sends tokens to where their experts are, "
        "and back. Each device then reads its own experts for the tokens of everyone, so that "
        "reading is shared by a large batch. What it needs in return is fast links, many tokens, "
        "and a router that keeps all devices equally busy.",
        "es": "En una mezcla de expertos cada token usa unas pocas redes de entre muchas. El "
        "paralelismo de expertos da algunas a cada dispositivo, envía los tokens adonde están sus "
        "expertos y los trae de vuelta. Cada dispositivo lee así sus propios expertos para los "
        "tokens de todos, y esa lectura se reparte entre un lote grande. A cambio necesita enlaces "
        "rápidos, muchos tokens y un enrutador que mantenga a todos igual de ocupados.",
    },
    diagram=(
        "tokens of each device, after attention",
        "router",
        "+all-to-all: tokens to the devices of their experts",
        "~experts: all on each device => n_experts / degree a device",
        "+all-to-all: results back",
        "weighted sum, residual",
    ),
)
