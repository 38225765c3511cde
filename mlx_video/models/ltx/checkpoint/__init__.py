"""A checkpoint on disk: releases, layouts, names of tensors and configs, and where each part lies. Reads headers; computes nothing."""
