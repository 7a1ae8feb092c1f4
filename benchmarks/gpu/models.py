"""Starts of a model that torch.compile compiles: without a cache, and by each way to a warm one."""

import statistics
from pathlib import Path

from benchmarks.bars import Number, turned
from benchmarks.lab import Lab
from benchmarks.machine import S3CACHE
from benchmarks.rival_starts import ArtifactsStart

LLAMA = Path(__file__).with_name("llama.py")
START_SECONDS = 900.0


def starts(lab: Lab, layers: int, mode: str) -> list[Number]:
    """Start Llama on fresh machines, from our bucket and from PyTorch's bundle, and on a hot stock one."""
    model = {"LLAMA_LAYERS": str(layers), "LLAMA_MODE": mode}
    under = [str(S3CACHE), "run", "--"]
    seconds: dict[str, list[float]] = {}
    with lab.wire() as wire:
        settings = lab.settings(lab.url(), wire) | model
        bundle = ArtifactsStart(lab, wire, LLAMA, model, START_SECONDS)
        stock = lab.machine()
        # It takes minutes: one start records for both, and makes the folder hot of a stock machine.
        recorded = bundle.record_on(stock, settings)
        lab.say(f"recording: {recorded.to_first_step:.2f} s; {recorded.report}")
        for turn in range(lab.runs):
            for kind in turned(["fresh", "stock hot", "bundle"], turn):
                if kind == "fresh":
                    began = lab.machine().train(settings, under, LLAMA, START_SECONDS)
                    took = began.to_first_step
                    assert began.report
                    lab.say(str(began.report))
                elif kind == "stock hot":
                    took = stock.train(model, script=LLAMA).to_first_step
                else:
                    took = bundle.start()
                lab.say(f"{kind}: {took:.2f} s")
                seconds.setdefault(kind, []).append(took)
    middle = {kind: statistics.median(values) for kind, values in seconds.items()}
    return [
        Number(
            f"Llama, {layers} layers, {mode}: spawn to first step, fresh ÷ stock hot",
            1.05,
            middle["fresh"] / middle["stock hot"],
            note=f"{middle['fresh']:.2f} s ÷ {middle['stock hot']:.2f} s",
            beside={"recording, s": recorded.to_first_step, "PyTorch's bundle, s": middle["bundle"]},
        )
    ]


def cold(lab: Lab, layers: int, mode: str) -> list[Number]:
    """Start Llama once without any cache."""
    model = {"LLAMA_LAYERS": str(layers), "LLAMA_MODE": mode}
    seconds = lab.machine().train(model, script=LLAMA, within=START_SECONDS).to_first_step
    what = f"Llama, {layers} layers, {mode}: spawn to first step, no cache"
    return [Number(what, START_SECONDS, seconds, " s")]
