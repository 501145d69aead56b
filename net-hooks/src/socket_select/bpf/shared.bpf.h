/* SPDX-License-Identifier: GPL-2.0-only */
/* What the dispatchers and the trusted half of socket-select share. */
#ifndef SYRUP_SOCKET_SELECT_BPF_H
#define SYRUP_SOCKET_SELECT_BPF_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <syrup/packet.h>

/*
 * Reuseport groups of one deployment: a server opens one for each address,
 * family and protocol.
 */
#define MAX_GROUPS 64

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, SYRUP_NR_COUNTERS);
	__type(key, __u32);
	__type(value, __u64);
} syrup_counters SEC(".maps");

/*
 * Whose input it is: the number of a group, from its dispatcher to the trusted
 * half, which run one after the other on one CPU. 0 between inputs, so that the
 * dispatcher of the first group, which most apps have alone, has nothing to say.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} syrup_group SEC(".maps");

/*
 * What syrup_num_executors() reads, where a policy can reach it without a call:
 * the number of every group; 0 when they differ. A policy that writes here fools
 * itself alone.
 */
__u32 syrup_nr_executors SEC(".data.executors") = 1;
/* One more than the highest number of a group; never falls. */
__u32 syrup_nr_groups SEC(".data.executors") = 1;

/* Softirqs do not nest on a CPU, so its entry needs no atomic. */
static __always_inline void add_one(void *per_cpu_map, __u32 key)
{
	__u64 *value = bpf_map_lookup_elem(per_cpu_map, &key);

	if (value)
		++*value;
}

static __always_inline __u32 *group_of_input(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&syrup_group, &zero);
}

#endif
