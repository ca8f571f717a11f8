"""What users run: a machine with the agent in it.

guest    a machine that boots the guest image, and the way to its agent
"""
