/* SPDX-License-Identifier: GPL-2.0-only */
/* What both objects of the skeleton share. Policies' compiler sees no system headers. */
#include <syrup/packet.h>

#define SEC(name) __attribute__((section(name), visibility("default"), used))

enum { XDP_DROP = 1, XDP_PASS = 2 };

struct xdp_md {
	__u32 data;
	__u32 data_end;
};

struct {
	int (*type)[6]; /* BPF_MAP_TYPE_PERCPU_ARRAY */
	__u32 *key;
	__u64 *value;
	int (*max_entries)[SYRUP_NR_COUNTERS];
} syrup_counters SEC(".maps");

static inline __attribute__((always_inline)) void add_one(void *map, __u32 key)
{
	__u64 *value = __syrup_map_lookup(map, key);

	if (value)
		++*value;
}
