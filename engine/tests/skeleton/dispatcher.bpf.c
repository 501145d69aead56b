// SPDX-License-Identifier: GPL-2.0-only
/* Dispatcher of the skeleton: one app, one slot. */
struct {
	int (*type)[3]; /* BPF_MAP_TYPE_PROG_ARRAY */
	__u32 *key;
	__u32 *value;
	int (*max_entries)[1];
} syrup_policies SEC(".maps");

SEC("xdp")
int syrup_dispatch(struct xdp_md *ctx)
{
	long (*const tail_call)(void *, void *, __u32) = (void *)12;

	tail_call(ctx, &syrup_policies, 0);
	add_one(&syrup_counters, SYRUP_NO_POLICY);
	return XDP_PASS;
}

char _license[] SEC("license") = "GPL";
