"""Gives a coding agent sandboxes, by the Model Context Protocol (extra: voidbox-kvm[mcp]).

shelf    the sandboxes of one server: made when needed, so many and no more, ended with it
text     what a guest wrote, cut to what a model should read
server   the tools
"""
