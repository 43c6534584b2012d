"""How a client knows that work was done right: classes of verification, distances, evidence about nodes, plans.

Pure: no I/O, no clock, no chance but what is handed in, no float in anything that decides. Clients, nodes that referee
and the calibration (`bench/calibration.py`) run this very code.
"""
