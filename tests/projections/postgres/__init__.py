"""Tests of projections into PostgreSQL."""
