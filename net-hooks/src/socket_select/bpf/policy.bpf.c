// SPDX-License-Identifier: GPL-2.0-only
/*
 * Trusted half of a socket-select policy: builds the input, calls the user's
 * schedule(), enforces its verdict. Whatever cannot be enforced is counted by
 * cause and left to the kernel's hash: a packet is never lost to a mistake.
 */
#include "shared.bpf.h"

/* The sockets of group g are at g * SYRUP_MAX_EXECUTORS and above. */
struct {
	__uint(type, BPF_MAP_TYPE_REUSEPORT_SOCKARRAY);
	__uint(max_entries, MAX_GROUPS *SYRUP_MAX_EXECUTORS);
	__type(key, __u32);
	__type(value, __u64); /* 8 bytes, so that user space reads socket cookies */
} syrup_executors SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_GROUPS);
	__type(key, __u32);
	__type(value, __u32); /* one more than the group's highest index in use */
} syrup_registered SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, SYRUP_MAX_EXECUTORS);
	__type(key, __u32);
	__type(value, __u64);
} syrup_verdicts SEC(".maps");

/* That of the input's group; NULL while there is only one. */
static __always_inline __u32 *this_group(void)
{
	return *(volatile __u32 *)&syrup_nr_groups > 1 ? group_of_input() : NULL;
}

/* For schedule(): only where the groups differ, so that others need no call. */
__hidden __u32 syrup_nr_executors_here(void)
{
	__u32 *number = this_group(), group = number ? *number : 0;
	__u32 *registered = bpf_map_lookup_elem(&syrup_registered, &group);

	return registered && *registered ? *registered : 1;
}

/* Of the dispatcher's kind: only such are in one PROG_ARRAY. */
SEC("sk_reuseport/migrate")
int syrup_policy(struct sk_reuseport_md *ctx)
{
	/*
	 * The kernel sets data to the UDP or TCP header: the input as it is. It
	 * ends with the packet's linear part; a driver that puts payload into
	 * page fragments hides that from SYRUP_READ, and this program type has
	 * no helper to pull it in.
	 */
	__s32 verdict = schedule(ctx->data, ctx->data_end);
	__u32 index = verdict, *number = this_group(), group = 0, place;

	if (number) {
		group = *number;
		*number = 0;
	}
	if (verdict == SYRUP_PASS) {
		add_one(&syrup_counters, SYRUP_PASSED);
		return SK_PASS;
	}
	if (verdict == SYRUP_DROP) {
		/* Not silent: a connected local sender gets ECONNREFUSED. */
		add_one(&syrup_counters, SYRUP_DROPPED);
		return SK_DROP;
	}
	/* Negative verdicts without a meaning are large here. */
	if (index >= SYRUP_MAX_EXECUTORS) {
		add_one(&syrup_counters, SYRUP_OUT_OF_RANGE);
		return SK_PASS;
	}
	place = group * SYRUP_MAX_EXECUTORS + index;
	if (bpf_sk_select_reuseport(ctx, &syrup_executors, &place, 0)) {
		/* In range: the socket was closed, or this index was never registered. */
		__u32 *registered = bpf_map_lookup_elem(&syrup_registered, &group);

		add_one(&syrup_counters, registered && index < *registered ? SYRUP_ENFORCE_FAILED
									   : SYRUP_OUT_OF_RANGE);
		return SK_PASS;
	}
	add_one(&syrup_verdicts, index);
	return SK_PASS;
}

char _license[] SEC("license") = "GPL";
