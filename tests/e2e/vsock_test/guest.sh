#!/bin/sh
# Run one of the vsock test programs in the first guest: it reports on the console, and its control
# channel is the second serial port.
#
#   guest.sh PROGRAM [ARG ...]
exec 3<>/dev/ttyS1
stty raw -echo <&3
echo "guest.sh: ready"
"$@" <&3 >&3
echo "guest.sh: status $?"
