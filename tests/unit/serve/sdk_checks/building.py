"""Templates, as the SDK's Template class builds and tags them."""

import os
import sys
import tempfile

import e2b
from checking import check, only, raises
from e2b import Sandbox

FOLDER = sys.argv[1]
# Older ones ask for 2 CPUs and 1 GiB, if nothing is said.
SIZE = {"cpu_count": 1, "memory_mb": 128}


@check
def templates(box):
    from e2b import Template, wait_for_file

    source = tempfile.mkdtemp()  # on the client's side
    os.makedirs(f"{source}/app", exist_ok=True)
    with open(f"{source}/app/data", "w") as file:
        file.write("of the context")
    template = (
        Template(file_context_path=source)
        .from_template("base")
        .set_workdir(f"{FOLDER}/built")
        .set_envs({"BUILT": "yes"})
        .copy("app", "app")
        .run_cmd("echo from the build; cat app/data > copied")
        .set_start_cmd(f"touch {FOLDER}/up; sleep 1000", wait_for_file(f"{FOLDER}/up"))
    )
    lines = []
    info = Template.build(
        template, "of-the-sdk", on_build_logs=lambda entry: lines.append(entry.message), **SIZE
    )
    assert info.alias == "of-the-sdk" and any("from the build" in line for line in lines), lines
    if hasattr(Template, "exists"):
        assert Template.exists("of-the-sdk") and not Template.exists("of-nobody")
    other = Sandbox.create("of-the-sdk", timeout=60)
    try:
        assert other.commands.run("echo $BUILT; cat copied").stdout == "yes\nof the context"
    finally:
        other.kill()
    failing = Template(file_context_path=source).from_template("base").run_cmd("exit 5")
    error = raises(e2b.BuildException, Template.build, failing, "failing", **SIZE)
    assert "exit code 5" in str(error)


@only(2, 30)
def templates_cache_and_tags(box):
    from e2b import Template

    def build(name, colour, **options):
        template = (
            Template()
            .from_template("base")
            .run_cmd(f"mkdir -p {FOLDER}; cat /proc/sys/kernel/random/uuid > {FOLDER}/dice")
            .set_envs({"COLOUR": colour})
            .run_cmd(f"cp {FOLDER}/dice {FOLDER}/copy")
        )
        lines = []
        info = Template.build(
            template,
            name,
            on_build_logs=lambda entry: lines.append(entry.message),
            **SIZE,
            **options,
        )
        return info, sum(line.startswith("CACHED RUN") for line in lines)

    def look(name):
        other = Sandbox.create(name, timeout=60)
        try:
            return other.commands.run(f"cat {FOLDER}/dice; echo $COLOUR").stdout.split()
        finally:
            other.kill()

    name = f"cached-{os.getpid()}"  # others run in the same server
    first, cached = build(f"{name}:v1", "blue")
    assert cached == 0 and first.tags == ["v1"], first
    dice, _ = look(f"{name}:v1")
    second, cached = build(name, "red", tags=["v2", "stable"])
    assert cached == 1 and look(f"{name}:stable") == [dice, "red"]
    _, cached = build(f"{name}:v3", "red", skip_cache=True)
    assert cached == 0 and look(f"{name}:v3")[0] != dice
    error = raises(e2b.SandboxException, Sandbox.create, name)
    assert "no tag 'default': " in str(error)
    told = Template.assign_tags(f"{name}:v2", ["default", "best"])
    assert str(told.build_id) == str(second.build_id) and set(told.tags) == {"default", "best"}
    assert {one.tag for one in Template.get_tags(name)} == {
        *("v1", "v2", "v3"),
        *("stable", "default", "best"),
    }
    Template.remove_tags(name, ["v2", "stable"])
    assert not Template.exists(f"{name}:v2") and Template.exists(name)
    raises(e2b.exceptions.TemplateException, Template.remove_tags, name, "no-such")
    closed = Template().from_image("127.0.0.1:9/team/app", username="me", password="pass-word")
    error = raises(e2b.BuildException, Template.build, closed, "closed", **SIZE)
    assert "127.0.0.1:9" in str(error) and "pass-word" not in str(error), error
    refused = Template().from_aws_registry("a.example/b", "id", "secret", "eu-west-1")
    error = raises(e2b.BuildException, Template.build, refused, "refused", **SIZE)
    assert "does not support" in str(error)
