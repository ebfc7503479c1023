#!/bin/busybox sh
# The only script of a smoke machine: makes a Docker host of it and runs the tests of clsact filters.
if [ "$1" != rooted ]; then
    # runc cannot leave a bare initramfs by pivot_root: another mount of it comes over it.
    /bin/busybox mount --rbind / /mnt
    cd /mnt || exit
    /bin/busybox mount --move . /
    exec /bin/busybox chroot . /init rooted "$@"
fi
shift
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TMPDIR=/tmp
/bin/busybox mkdir /applets
/bin/busybox --install -s /applets
PATH=$PATH:/applets
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm /var/run/docker /etc
mount -t devpts pts /dev/pts
for place in /dev/shm /run /tmp; do mount -t tmpfs tmpfs $place; done
mount -t cgroup2 cgroup /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
ip link set lo up
depmod
for module in veth bridge sch_ingress cls_bpf cls_u32 inet_diag tcp_diag udp_diag nf_tables \
    ip_tables iptable_filter iptable_nat nf_nat; do
    modprobe $module 2>&1
done
# Emulated, everything takes longer.
export FORWARDER_TESTS_PATIENCE=10 RUST_BACKTRACE=0
export FORWARDER_BIN=/opt/forwarder FORWARDER_PROXY_BIN=/opt/forwarder-proxy PEER_BIN=/opt/peer
/opt/tests --test-threads=1 "$@" 2>&1
