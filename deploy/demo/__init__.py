"""The main job on real input: labelled images, mixed floors and deadlines, a steady rate and a burst beyond capacity."""
