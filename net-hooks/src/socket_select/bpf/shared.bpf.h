/* SPDX-License-Identifier: GPL-2.0-only */
/* What the dispatcher and the trusted half of socket-select share. */
#ifndef SYRUP_SOCKET_SELECT_BPF_H
#define SYRUP_SOCKET_SELECT_BPF_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <syrup/packet.h>

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, SYRUP_NR_COUNTERS);
	__type(key, __u32);
	__type(value, __u64);
} syrup_counters SEC(".maps");

/* Softirqs do not nest on a CPU, so its entry needs no atomic. */
static __always_inline void add_one(void *per_cpu_map, __u32 key)
{
	__u64 *value = bpf_map_lookup_elem(per_cpu_map, &key);

	if (value)
		++*value;
}

#endif
