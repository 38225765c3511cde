"""A checkpoint on disk: releases, layouts, tensor names, configs, and where each part is. Reads headers; computes nothing."""
