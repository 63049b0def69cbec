#!/usr/bin/env bash
# Twenty kills of a run at random moments; its scores must equal those of a run that was not killed.
cd "$(dirname "$0")/.." && XATTN_KILLS=20 python -m pytest tests/study/test_resume.py
