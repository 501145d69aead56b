#!/bin/sh
# The first program in the guest, run as root by virtme-ng's init: prepares the
# machine and runs FOLDER/command.sh. FOLDER is shared with the host, which
# learns there that the command started (`started`) and how it ended (`status`),
# and judges what the kernel said meanwhile (`kmsg`, `taint`).
folder=$1
accel=$2

# Records rather than text: they tell the kernel's words from those of programs.
cat /dev/kmsg >"$folder/kmsg" 2>/dev/null &
uname -r >"$folder/release"

# A scheduler or a Map for a realistic load outgrows the defaults.
ulimit -l unlimited
ulimit -n 65536

mount -t bpf bpf /sys/fs/bpf
mountpoint -q /sys/fs/cgroup || mount -t cgroup2 cgroup2 /sys/fs/cgroup
ip link set lo up

# Layers over the host's files need the module overlay, which not every kernel
# brings. A repository below such a folder must not be hidden.
repository=$(cd "$(dirname "$0")/.." && pwd)
for place in /tmp /run /var/tmp; do
	[ ! -w "$place" ] || continue
	mount --bind "$repository" /mnt
	mount -t tmpfs -o mode=1777 tmpfs "$place"
	case $repository in
	"$place"/*) mkdir -p "$repository" && mount --bind /mnt "$repository" ;;
	esac
	umount /mnt
done

# Where time is measured: khugepaged is an ordinary thread, so it outranks
# sched_ext, and emulated it copies for a tenth of a second at a time. A command
# may write another choice here.
[ "$accel" != icount ] || echo never >/sys/kernel/mm/transparent_hugepage/enabled

echo "syrup-vm: the command starts" >/dev/kmsg
: >"$folder/started"
/bin/sh "$folder/command.sh"
status=$?

# The log is complete when the host's copy has the last line.
end="syrup-vm: the command ended"
echo "$end" >/dev/kmsg
tries=100
until tail -n 50 "$folder/kmsg" | grep -qF "$end" || [ $((tries -= 1)) = 0 ]; do
	sleep 0.1
done
cat /proc/sys/kernel/tainted >"$folder/taint"
# In one step, so that the host never reads half a number.
echo "$status" >"$folder/status.new"
mv "$folder/status.new" "$folder/status"
