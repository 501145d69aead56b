// SPDX-License-Identifier: GPL-2.0-only
/* Trusted half of the skeleton: an executor is a number that is counted. */
struct {
	int (*type)[6]; /* BPF_MAP_TYPE_PERCPU_ARRAY */
	__u32 *key;
	__u64 *value;
	int (*max_entries)[SYRUP_MAX_EXECUTORS];
} syrup_verdicts SEC(".maps");

__u32 syrup_nr_executors SEC(".data.executors") = 1;

/* Every input has the same number of them. */
__attribute__((visibility("hidden"))) __u32 syrup_nr_executors_here(void)
{
	return syrup_nr_executors;
}

SEC("xdp")
int syrup_policy(struct xdp_md *ctx)
{
	__s32 verdict = schedule((void *)(long)ctx->data, (void *)(long)ctx->data_end);

	if (verdict == SYRUP_PASS) {
		add_one(&syrup_counters, SYRUP_PASSED);
		return XDP_PASS;
	}
	if (verdict == SYRUP_DROP) {
		add_one(&syrup_counters, SYRUP_DROPPED);
		return XDP_DROP;
	}
	if ((__u32)verdict >= syrup_num_executors()) {
		add_one(&syrup_counters, SYRUP_OUT_OF_RANGE);
		return XDP_PASS;
	}
	add_one(&syrup_verdicts, verdict);
	return XDP_PASS;
}

char _license[] SEC("license") = "GPL";
