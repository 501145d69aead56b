// SPDX-License-Identifier: GPL-2.0-only
/*
 * Dispatcher of socket-select: the program that is attached to a reuseport group
 * of an app, one for each of its groups. A group is one app's alone, so there is
 * nothing to look up: slot 0 by constant index, which the JIT turns into a direct
 * jump. The slot is the same for all groups of the app.
 */
#include "shared.bpf.h"

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} syrup_policies SEC(".maps");

/* Which of the app's groups it is attached to. */
const volatile __u32 syrup_this_group = 0;

/*
 * Selecting nothing leaves the choice to the kernel's hash.
 *
 * Connections that wait at a listener which closes have been decided about once,
 * and there may be no packet: the hash takes them to a listener that is left.
 */
static __always_inline int dispatch(struct sk_reuseport_md *ctx, __u32 number)
{
	__u32 *group = NULL;

	if (ctx->migrating_sk)
		return SK_PASS;
	if (number) {
		group = group_of_input();
		if (group)
			*group = number;
	}
	bpf_tail_call(ctx, &syrup_policies, 0);
	/* The slot is empty. */
	if (group)
		*group = 0;
	add_one(&syrup_counters, SYRUP_NO_POLICY);
	return SK_PASS;
}

/*
 * One of the two is loaded. Of the kind that is asked about such connections: with
 * the other kind the kernel would reset them, as it does without any program.
 *
 * That of the first group, which most apps have alone, reads no variable: one more
 * that is cold took 10 of 220 ns.
 */
SEC("?sk_reuseport/migrate")
int syrup_first(struct sk_reuseport_md *ctx)
{
	return dispatch(ctx, 0);
}

SEC("?sk_reuseport/migrate")
int syrup_dispatch(struct sk_reuseport_md *ctx)
{
	return dispatch(ctx, syrup_this_group);
}

char _license[] SEC("license") = "GPL";
