"""The words of NANO.md; `probe_card.py` fills in the measurements."""

TEXT = """# nano

The embedded encoder of FusionBench: a vision transformer of {layers} blocks, {dim} wide, for images
of {size} x {size} pixels ({tokens} tokens with CLS). It exists so that the whole suite runs in
minutes on a CPU, without a download. It is no feature extractor for anything else.

- Weights fingerprint: `{weights}`; licence: Apache-2.0, like the rest of the package.
- Teacher: {teacher}, fingerprint `{teacher_weights}`.
- Made by `{command}` ({minutes} minutes of one CPU thread on a busy machine, after the teacher).
- Pictures: {images}. No photographs.
  Rendered scenes are as their painters drew them then; they may have changed since.
- Recipe: {recipe}.

The last hidden state, after the final norm, was trained to give the teacher's final tokens (its
patches averaged onto nano's grid) through a linear head, a middle one the teacher's middle layer
(not averaged), an early one the pixels of its patch. The heads were thrown away. Train splits of
the tasks and rendered scenes from seeds that no task uses were seen; nothing that a task validates
or tests on was (a test compares the hashes).

## What each layer knows

Test accuracy in percent of a logistic regression on CLS and the mean patch of one hidden state
(one regression for each question; L2 penalty chosen on val; at most {limits}).
The best layer is bold. Mean pooling hides positions: a low number means "not linearly readable
from the mean", not "absent".

{tables}

`last` is `hs[{layers}]`; `best middle` the best of `hs[1]` to the one before the last, chosen on
val; `random` is an untrained twin of the same architecture, `random best` its best layer, chosen
on test (too high, if anything); `+-` is half of the 95 % interval at an accuracy of one half, from
n test examples.

- The last layer beats the random one by more than two half-widths on: {clear}.
- The best middle layer beats the last by more than one half-width on: {middle}.
"""
