"""Tests of the kernel's KCM, and the traffic that tests and the demonstration send through it."""
