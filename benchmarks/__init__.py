"""Measurements that decisions rest on; each module prints one report and asserts no time."""
