/* Says how long each of its words is. */
#include <jansson.h>
#include <stdio.h>
#include <string.h>

int main(int argc, char **argv)
{
	json_t *all = json_object();

	for (int i = 1; i < argc; i++)
		json_object_set_new(all, argv[i], json_integer(strlen(argv[i])));
	json_dumpf(all, stdout, JSON_SORT_KEYS);
	putchar('\n');
	json_decref(all);
	return 0;
}
