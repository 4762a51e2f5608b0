"""Reads back an event file of ours with TensorBoard itself: pip install tensorboard; then

    DATUM_EVENTS=/tmp/events cargo test --test report_tensorboard
    python tests/golden/report_tensorboard.py /tmp/events
"""
import sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

events = EventAccumulator(sys.argv[1]).Reload()
assert events.Tags()["scalars"] == ["loss", "val/mIoU"], events.Tags()
# The first file goes to step 9, the second one resumes after step 5: its steps replace those after 5.
steps = [e.step for e in events.Scalars("loss")]
assert steps == [1, 2, 3, 4, 5, 6, 7], steps
assert [round(e.value, 6) for e in events.Scalars("loss")][-2:] == [10.0, 10.0]
picture = events.Images("sample")[0]
assert (picture.step, picture.width, picture.height) == (3, 5, 3)
assert picture.encoded_image_string.startswith(b"\x89PNG")
print("TensorBoard reads the file:", steps)
