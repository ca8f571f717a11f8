"""What `voidbox setup` does: kernel, boot initramfs and guest image from a Debian archive.

Python alone: no apt, dpkg, root or compiler on the host. From the bottom up:

    openpgp     signatures of clear-signed lists, by the keys in keys/
    sources     where this host's apt, or the user, says the archive is
    release     InRelease: checked, then read
    packages    Packages: what there is; versions and resolve: what is taken
    site        one mirror: HTTP or a folder
    files       the cache of what comes from it
    lists       InRelease and Packages, from there or from the cache
    archive     all of these together: open, resolve, download
    deb         a .deb, into a tree of files
    kernel      a kernel's package, as the folder that `run` looks for
    modules     which of its modules a guest needs
    one_package a package as files, for the scripts of a clone
    guest_tree  what is in the guest image; guest_image makes it: EROFS and initramfs
    installing  all that `voidbox setup` does
    debian_root a whole Debian, whose packages' scripts a guest runs: guest_runner
    building    such a Debian as an image of the store: `voidbox image build`

Whoever builds something else from packages begins with the archive:

    from voidbox.setup.archive import ArchiveOptions, open_archive
    from voidbox.setup.deb import unpack_deb

    with open_archive(ArchiveOptions(suite="bookworm")) as archive:
        packages = archive.resolve(["git", "curl"])      # with all that they depend on
        paths = archive.download(packages)               # checked files in the cache, same order
    with Tree(folder) as tree:
        for path in paths:
            unpack_deb(tree, path)

Where it runs by `scripts/with-apt`, this host's apt does the fetching, as it is configured.
"""
