// SPDX-License-Identifier: GPL-2.0-only
/*
 * Counts what happens to the reuseport groups of the machine, so that whoever keeps
 * deployments up to date need not look at them to know that nothing has changed.
 *
 * Counted when such a change begins: whoever reads the count looks some time later.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} syrup_changes SEC(".maps");

static __always_inline int count_one(void)
{
	__u32 first = 0;
	__u64 *changes = bpf_map_lookup_elem(&syrup_changes, &first);

	if (changes)
		__sync_fetch_and_add(changes, 1);
	return 0;
}

#define COUNT_CALLS(function)                                                                      \
	SEC("fentry/" #function)                                                                   \
	int syrup_##function(__attribute__((unused)) void *ctx)                                    \
	{                                                                                          \
		return count_one();                                                                \
	}

/* The first socket of a group. */
COUNT_CALLS(reuseport_alloc)
/* Any other. */
COUNT_CALLS(reuseport_add_sock)
/* One that is closed, or bound anew. */
COUNT_CALLS(reuseport_detach_sock)
/* A listener that is closed. */
COUNT_CALLS(reuseport_stop_listen_sock)

char _license[] SEC("license") = "GPL";
