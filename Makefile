# The two commands of README.md are `make demo` and `make test`; the rest is for developers.
VENV ?= .venv
PYTHON = $(VENV)/bin/python
export VENV

.PHONY: demo test test-fast test-slow test-lab test-machines test-sandboxes test-long test-pythons test-ray \
	lint bench setup kernels image runtime network-image \
	disk-image git-image root-images trixie-host registry sdks sdk-table frameworks interpreter-image claude-image clean

demo: setup runtime
	scripts/demo.sh

# Everything: what needs no Linux guest here, what boots one here or in the lab.
test: setup lint test-fast test-slow test-lab

# A file's tests stay together: what they share is made once. The fast ones are to be run often.
HOST_PYTEST = $(PYTHON) -m pytest -n auto --dist loadfile tests/unit tests/guest
test-fast: setup registry
	$(HOST_PYTEST) -m "not slow"

test-slow: setup registry runtime sdks
	$(HOST_PYTEST) -m slow

# The lab's software CPU now and then stalls or resets a nested guest, about once in a hundred boots:
# what has not passed is tried again in a fresh lab, after a lab that stands still too. A real fault
# fails three times.
#
# Two labs side by side, for one keeps hardly more than a processor busy. All that needs the host's
# vhost is in the first: where this machine's KVM is real, there is only one of it. Together they take
# a quarter of an hour; what takes longer is `make test-long`, to be run before a release.
LAB_MACHINES = tests/guest tests/unit/vsock/test_vhost.py \
	tests/unit/net/test_nat.py::test_ping_of_the_world \
	$(addprefix tests/e2e/test_,agent.py interrupts.py virtio.py)
LAB_SANDBOXES = tests/e2e/test_cli_sandbox.py
LAB_LONG = $(filter-out $(LAB_MACHINES) $(LAB_SANDBOXES) tests/e2e/test_kvm_lab.py, \
	$(wildcard tests/e2e/test_*.py))
LAB_SILENCE = 420
LAB_PYTEST = scripts/with-kvm --mem 8192 --timeout 2700 --silence $(LAB_SILENCE) --rw build/lab -- \
	$(PYTHON) -m pytest -p no:cacheprovider -p tests.unfinished --passed build/lab/$@.passed
# What needs Ray, Inspect and SWE-ReX, half a gigabyte of packages: to be run before a release. They
# stay in the environment, and test-slow runs these tests too from then on.
test-ray: setup
	$(PYTHON) -m pip install -q --disable-pip-version-check ray==2.60.0 cryptography \
		inspect_ai==0.3.285 swe-rex==1.4.0
	$(PYTHON) -m pytest tests/unit/ray tests/unit/adapters

test-lab: setup kernels
	$(PYTHON) -m pytest tests/e2e/test_kvm_lab.py
	$(MAKE) --jobs 2 test-machines test-sandboxes

test-machines: LAB_TESTS = $(LAB_MACHINES)
test-sandboxes: LAB_TESTS = $(LAB_SANDBOXES)
test-long: LAB_TESTS = $(LAB_LONG)
test-long: LAB_SILENCE = 1800
test-long: setup kernels root-images trixie-host
test-machines test-sandboxes test-long:
	rm -f build/lab/$@.passed
	$(LAB_PYTEST) $(LAB_TESTS) || $(LAB_PYTEST) $(LAB_TESTS) || $(LAB_PYTEST) $(LAB_TESTS)

# The unit tests once more, on every Python that this machine has.
test-pythons: setup
	scripts/test-pythons

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

bench: setup kernels root-images registry
	$(PYTHON) benchmarks/images.py
	scripts/with-kvm --mem 8192 --timeout 3000 --rw benchmarks/results -- \
		$(PYTHON) benchmarks/boot.py --output benchmarks/results/boot.json
	scripts/with-kvm --mem 8192 --timeout 1200 --rw benchmarks/results -- \
		$(PYTHON) benchmarks/vsock.py --output benchmarks/results/vsock.json
	scripts/with-kvm --mem 8192 --timeout 1200 --rw benchmarks/results -- \
		$(PYTHON) benchmarks/net.py --output benchmarks/results/net.json
	scripts/with-kvm --mem 8192 --timeout 1200 --rw benchmarks/results -- \
		$(PYTHON) benchmarks/block.py --output benchmarks/results/block.json
	scripts/with-kvm --mem 8192 --timeout 1200 --rw benchmarks/results -- \
		$(PYTHON) benchmarks/workspace.py --output benchmarks/results/workspace.json
	scripts/with-kvm --mem 8192 --timeout 1200 --rw benchmarks/results -- \
		$(PYTHON) benchmarks/snapshot.py --output benchmarks/results/snapshot.json

# This host's apt, if it has one, fetches for what needs packages: as it is configured.
WITH_APT = scripts/with-apt

kernels: setup image runtime network-image disk-image git-image
	$(WITH_APT) kernel/fetch_debian.sh cloud
	$(WITH_APT) kernel/fetch_debian.sh generic
	kernel/build_minimal.sh
	scripts/build_first_guest.sh
	tests/e2e/vsock_test/build.sh

# The wheels that users install, in build/wheels; the runtime's also into the environment.
runtime: setup
	$(WITH_APT) scripts/install_runtime.sh

# The guest image, for kernels that need no modules and for Debian's cloud kernel.
image: setup
	$(WITH_APT) scripts/build_guest_image.sh
	$(WITH_APT) scripts/build_guest_image.sh --kernel "$$($(WITH_APT) kernel/fetch_debian.sh cloud)"

# The same with the programs that the network's tests use.
network-image: setup
	$(WITH_APT) scripts/build_guest_image.sh --with curl --with netcat-openbsd
	$(WITH_APT) scripts/build_guest_image.sh --with curl --with netcat-openbsd \
		--kernel "$$($(WITH_APT) kernel/fetch_debian.sh cloud)"

# Roots on disks for the tests, which have no network where they run.
root-images: setup
	$(WITH_APT) $(PYTHON) -m tests.e2e.disk_images

# For those tests that need Claude Code, if you accept Anthropic's terms: `make test` does not fetch it.
claude-image: setup
	scripts/build_claude_rootfs.sh --version 2.1.112

# A Debian 13 that the wheels are installed in; without it, the tests that want it are left out.
trixie-host: runtime
	-$(PYTHON) -m tests.trixie_host

# A real registry, for the tests of `voidbox image pull`.
registry:
	scripts/fetch_registry.sh

# E2B's SDKs, for the tests of `voidbox serve`.
sdks:
	scripts/fetch_sdks.sh

# Run the checks with each version of the SDKs that is fetched, and then say in docs/serve.md which.
sdk-table: setup sdks
	$(PYTHON) -m pytest tests/unit/serve/test_sdks.py tests/unit/serve/test_interpreter.py
	$(PYTHON) -m tests.unit.serve.sdk_versions

# The image that E2B's code interpreter runs in, for tests/e2e/test_serve.py; it takes minutes.
interpreter-image: setup
	$(WITH_APT) $(PYTHON) -c "from tests.e2e.disk_images import interpreter_image as make; print(make())"

# Agent frameworks that use them; `make test` does without.
frameworks:
	scripts/fetch_sdks.sh frameworks

# The same with the programs that the disks' tests use, and their benchmark.
disk-image: setup
	$(WITH_APT) scripts/build_guest_image.sh --with e2fsprogs
	$(WITH_APT) scripts/build_guest_image.sh --with e2fsprogs --kernel "$$($(WITH_APT) kernel/fetch_debian.sh cloud)"
	$(WITH_APT) scripts/build_guest_image.sh --with fio

# The same with git, for the workspace's tests.
git-image: setup
	$(WITH_APT) scripts/build_guest_image.sh --with git

setup:
	scripts/setup.sh

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
