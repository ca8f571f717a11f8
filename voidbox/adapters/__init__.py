"""voidbox under other programs' interfaces for sandboxes, each of which is imported by its users.

ray_sandbox   Ray's own ray.experimental.sandbox
inspect       a SandboxEnvironment of Inspect (inspect_ai)
swerex        a Deployment of SWE-ReX
"""
