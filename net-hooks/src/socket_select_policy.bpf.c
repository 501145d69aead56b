// SPDX-License-Identifier: GPL-2.0-only
/*
 * Trusted half of a socket-select policy: builds the input, calls the user's
 * schedule(), enforces its verdict. Whatever cannot be enforced is counted by
 * cause and left to the kernel's hash: a packet is never lost to a mistake.
 */
#include "socket_select.bpf.h"

struct {
	__uint(type, BPF_MAP_TYPE_REUSEPORT_SOCKARRAY);
	__uint(max_entries, SYRUP_MAX_EXECUTORS);
	__type(key, __u32);
	__type(value, __u64); /* 8 bytes, so that user space reads socket cookies */
} syrup_executors SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct syrup_group);
} syrup_group SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, SYRUP_MAX_EXECUTORS);
	__type(key, __u32);
	__type(value, __u64);
} syrup_verdicts SEC(".maps");

/*
 * The dispatcher is attached after the first registration, so the fallback is
 * never used; it keeps the promise of policy.h (not 0) whatever happens.
 */
__attribute__((visibility("hidden"))) __u32 syrup_num_executors(void)
{
	__u32 zero = 0;
	struct syrup_group *group = bpf_map_lookup_elem(&syrup_group, &zero);

	return group && group->nr_executors ? group->nr_executors : 1;
}

SEC("sk_reuseport")
int syrup_policy(struct sk_reuseport_md *ctx)
{
	/*
	 * The kernel sets data to the UDP or TCP header: the input as it is. It
	 * ends with the packet's linear part; a driver that puts payload into
	 * page fragments hides that from SYRUP_READ, and this program type has
	 * no helper to pull it in.
	 */
	__s32 verdict = schedule(ctx->data, ctx->data_end);
	__u32 index = verdict;

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
	if (index >= syrup_num_executors()) {
		add_one(&syrup_counters, SYRUP_OUT_OF_RANGE);
		return SK_PASS;
	}
	/* -ENOENT: the socket was closed, or this index was never registered. */
	if (bpf_sk_select_reuseport(ctx, &syrup_executors, &index, 0)) {
		add_one(&syrup_counters, SYRUP_ENFORCE_FAILED);
		return SK_PASS;
	}
	add_one(&syrup_counters, SYRUP_CHOSEN);
	add_one(&syrup_verdicts, index);
	return SK_PASS;
}

char _license[] SEC("license") = "GPL";
