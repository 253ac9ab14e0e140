#!/usr/bin/env bash
# Deblur Lai's benchmark, or the sample where it is not there; all options of selfdeblur_lai.py are passed on.
exec bash "$(dirname "$0")/scripts/demo.sh" lai "$@"
