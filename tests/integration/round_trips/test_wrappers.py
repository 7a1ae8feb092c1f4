"""The Python wrappers of graphs, which users read, step through and edit."""

from tests.integration.round_trips.conftest import MakeRoundTrip

LINES = """
    from torch._inductor.codecache import PyCodeCache

    def wave(x):
        doubled = x * 2
        return doubled.cos()

    with step("wave") as computed:
        computed(torch.compile(wave)(torch.arange(40.0)))
    (wrapper,) = {module.__file__ for module in PyCodeCache.modules}
    written = len(pathlib.Path(wrapper).read_text().splitlines())
    found = [PyCodeCache.stack_frames_for_code(wrapper, line + 1) or () for line in range(written)]
    frames = {
        (pathlib.Path(frame["filename"]).name, frame["line"] - wave.__code__.co_firstlineno, frame["name"])
        for frames in found
        for frame in frames
    }
    key, path = PyCodeCache.write("import torch", "")
    PyCodeCache.load_by_key_path(key, path, linemap=[])
    report(steps=steps, frames=sorted(frames), without=PyCodeCache.stack_frames_for_code(path, 0))
"""


def test_stack_frames_of_a_restored_wrapper_point_at_the_users_lines(round_trip: MakeRoundTrip) -> None:
    trip = round_trip(LINES)
    assert trip.on_b("wave").hits == 1
    assert ["job.py", 2, "wave"] in trip.recorded.facts["frames"]
    assert trip.restored.facts["frames"] == trip.recorded.facts["frames"]
    assert trip.restored.facts["without"] is None
