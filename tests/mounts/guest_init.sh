#!/bin/bash
# guest_init - the first process of a User-Mode-Linux guest: a kernel NFS server or client (see guests.py)
#
# The kernel's command line says ROLE (server, client), ADDRESS and AGENT (the Python, and what to run with it). The
# guest's root is the host's / by hostfs; what a guest writes goes to filesystems of its own: /run, /mnt, /var/lib/nfs.

export PATH=/usr/sbin:/usr/bin:/sbin:/bin PYTHONDONTWRITEBYTECODE=1 HOME=/root
mount -t proc proc /proc
mount -t sysfs sys /sys
for place in /run /mnt /var/lib/nfs /dev/shm /etc/exports.d; do
  [ -d $place ] && mount -t tmpfs tmpfs $place
done
mkdir -p /run/lock /run/rpcbind /run/modules/lib /var/lib/nfs/{sm,sm.bak,v4recovery,rpc_pipefs} /dev/pts
touch /var/lib/nfs/{etab,rmtab,state}
mount -t devpts devpts /dev/pts
ln -s /usr/lib/uml/modules /run/modules/lib/modules
hostname "$NAME"
ip link set lo up
ip address add "$ADDRESS/24" dev vec0
ip link set vec0 up
rpcbind -w

if [ "$ROLE" = server ]; then
  modprobe -d /run/modules nfsd
  mount -t nfsd nfsd /proc/fs/nfsd
  mkdir -p /mnt/export
  mount /dev/ubda /mnt/export
  chmod 1777 /mnt/export
  echo '/mnt/export *(rw,sync,no_root_squash,no_subtree_check,fsid=0,insecure)' > /run/exports
  mount --bind /run/exports /etc/exports
  exportfs -ra
  rpc.statd --no-notify
  # A client may take back its state for ten seconds; what is waited for in production is a minute and a half.
  rpc.nfsd --grace-time 10 --lease-time 10 --host "$ADDRESS" 8
  rpc.mountd
else
  modprobe -d /run/modules -a nfs nfsv3 nfsv4
  rpc.statd --no-notify
fi

# Not exec: the first process is to collect the orphans, which the shell does while it waits.
$AGENT "$ADDRESS" &
while true; do wait; sleep 1; done
