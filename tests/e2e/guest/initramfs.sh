#!/bin/busybox sh
# /init of the guest's initramfs: load the modules for a virtio disk, mount the root image, hand over to init.sh.
/bin/busybox --install -s /bin
PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
while read -r module; do
	insmod "/modules/$module" || echo "initramfs: cannot load $module" >/dev/console
done </modules/order
tries=0
while [ ! -b /dev/vda ] && [ $tries -lt 500 ]; do
	tries=$((tries + 1))
	usleep 20000
done
mount -t ext4 -o rw,noatime /dev/vda /root || { echo 'initramfs: no root disk' >/dev/console; poweroff -f; }
for directory in dev proc sys; do mount --move /$directory /root/$directory; done
exec switch_root /root /sbin/guest-init
