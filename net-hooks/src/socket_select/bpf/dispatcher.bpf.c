// SPDX-License-Identifier: GPL-2.0-only
/*
 * Dispatcher of socket-select: the program that is attached to an app's
 * reuseport group. The group is the app's alone, so there is nothing to look
 * up: slot 0 by constant index, which the JIT turns into a direct jump.
 */
#include "shared.bpf.h"

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} syrup_policies SEC(".maps");

SEC("sk_reuseport")
int syrup_dispatch(struct sk_reuseport_md *ctx)
{
	bpf_tail_call(ctx, &syrup_policies, 0);
	/* The slot is empty. Selecting nothing leaves the choice to the kernel's hash. */
	add_one(&syrup_counters, SYRUP_NO_POLICY);
	return SK_PASS;
}

char _license[] SEC("license") = "GPL";
