#!/bin/sh
# As root, in a Debian whose essential packages are unpacked and known to no dpkg: have dpkg install
# them, and apt all else that lies in /.repo; then write the whole, as /.bare has it, to $1 as a tar
# archive.
set -eu
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8
export DEBIAN_FRONTEND=noninteractive DEBCONF_NONINTERACTIVE_SEEN=true
umask 022
cd /

dpkg() {
    command dpkg --force-unsafe-io --force-depends --force-confold "$@"
}
printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d # no service is started
chmod 755 /usr/sbin/policy-rc.d
[ -e /etc/localtime ] || ln -s /usr/share/zoneinfo/UTC /etc/localtime

# Those that the scripts of all others count on, one by one, as debootstrap has them.
for name in base-passwd base-files dpkg libc6 perl-base mawk debconf; do
    for deb in /.repo/"$name"_*.deb; do
        [ ! -e "$deb" ] || dpkg --install "$deb"
    done
done
while read -r deb; do set -- "$@" "/.repo/$deb"; done </.repo/first
output=$1
shift
dpkg --unpack "$@"
dpkg --configure --pending --force-configure-any

if [ -s /.repo/wanted ]; then
    echo 'deb [trusted=yes] file:/.repo ./' >/tmp/sources.list
    apt() {
        apt-get -q -o Dir::Etc::SourceList=/tmp/sources.list -o Dir::Etc::SourceParts=/dev/null \
            -o APT::Sandbox::User=root -o Dpkg::Use-Pty=0 -o Dpkg::Options::=--force-unsafe-io "$@"
    }
    apt update
    # shellcheck disable=SC2046  # a list of words
    apt install -y --no-install-recommends $(cat /.repo/wanted)
fi

rm -rf /usr/sbin/policy-rc.d /tmp/* /var/lib/apt/lists/* /var/cache/apt/*.bin /var/log/apt/* \
    /var/cache/ldconfig/aux-cache /var/log/dpkg.log /var/log/alternatives.log /var/cache/debconf/*-old \
    /var/lib/dpkg/*-old
[ ! -e /etc/machine-id ] || : >/etc/machine-id
# From the root without what is mounted on it: /sys changes while it is read, and tar fails then. No
# process of the packages' is to write on meanwhile.
tar --create --file "$output" --totals --one-file-system --numeric-owner --sort=name \
    --xattrs --xattrs-include='*' --exclude=./.repo --exclude=./.bare --directory /.bare .
