#!/usr/bin/env bash
# Deblur Levin's benchmark, or the sample where it is not there; all options of selfdeblur_levin.py are passed on.
exec bash "$(dirname "$0")/scripts/demo.sh" levin "$@"
