/*
 * Runs programs on data for test_delineate.py, compiled with the sanitizers.
 *
 * Standard input is a sequence of cases: a 4-byte count of instructions and those, a 4-byte size
 * and as much data.  For each a line is written: what the check says, and unless it refuses the
 * program, what the program returns, how many messages the data has, and how long they are.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "_delineate.h"

static void *take(size_t size)
{
	/* Of just this size, so that a read past the end is one past the allocation. */
	void *data = malloc(size);

	if (fread(data, 1, size, stdin) != size)
		exit(1);
	return data;
}

int main(void)
{
	uint32_t count, size;

	while (fread(&count, 4, 1, stdin) == 1) {
		struct bpf_insn *program = take(count * sizeof(*program));
		int error = pykcm_delineate_check(program, count);
		uint32_t lengths[64];
		size_t used;
		void *data;

		if (fread(&size, 4, 1, stdin) != 1)
			return 1;
		data = take(size);
		printf("%d", error);
		if (!error) {
			printf(" %lld", (long long)pykcm_delineate(program, data, size));
			printf(" %zu", pykcm_divide(program, data, size, lengths, 64, &used));
			printf(" %zu", used);
		}
		puts("");
		free(data);
		free(program);
	}
	return 0;
}
