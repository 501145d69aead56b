#!/bin/sh
# The first program in the guest, run as root by virtme-ng's init: prepares the
# machine and runs FOLDER/command.sh. FOLDER is shared with the host, which
# learns there that the command started (`started`) and how it ended (`status`).
folder=$1

# A scheduler or a Map for a realistic load outgrows the defaults.
ulimit -l unlimited
ulimit -n 65536

mount -t bpf bpf /sys/fs/bpf
mountpoint -q /sys/fs/cgroup || mount -t cgroup2 cgroup2 /sys/fs/cgroup
ip link set lo up

# khugepaged is an ordinary thread, so it outranks sched_ext, and emulated it
# copies for a tenth of a second at a time: every latency would show it.
echo never >/sys/kernel/mm/transparent_hugepage/enabled

# What the kernel says while the command runs goes to the host as it comes.
dmesg --follow-new >"$folder/dmesg" 2>/dev/null &

: >"$folder/started"
/bin/sh "$folder/command.sh"
status=$?
# In one step, so that the host never reads half a number.
echo "$status" >"$folder/status.new"
mv "$folder/status.new" "$folder/status"
