#!/bin/busybox sh
# PID 1 of the first file system: loads what the disks need and goes over to the root disk.
# A failure here ends in a kernel panic, and with it the machine (panic=-1, -no-reboot).
set -e
/bin/busybox mkdir -p /proc /sys /dev /root
/bin/busybox mount -t devtmpfs dev /dev
exec >/dev/ttyS0 2>&1 </dev/null
# The modules were listed in the order in which they depend on each other.
while read -r module; do /bin/busybox insmod "/modules/$module"; done </modules/order
tries=0
until [ -b /dev/vda ] && [ -b /dev/vdb ]; do
    tries=$((tries + 1))
    [ "$tries" -lt 300 ] || exit 1
    /bin/busybox sleep 0.1
done
/bin/busybox mount -t ext4 /dev/vda /root
/bin/busybox mkdir -p "/root$prefix"
/bin/busybox mount -t ext4 /dev/vdb "/root$prefix"
/bin/busybox mount --move /dev /root/dev
exec /bin/busybox switch_root /root "$prefix/checkout/tests/vm/guest.sh"
