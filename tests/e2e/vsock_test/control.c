/*
 * The control channel of the kernel's vsock test programs, over standard input and output instead of
 * TCP: the guest has no network. Here these are a serial line, which has nothing to do with what is
 * tested. Implements the interface of the programs' control.h. What they print goes to standard
 * error.
 */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "control.h"
#include "timeout.h"

#define LINE_BYTES_MAX 256

static int output_fd = -1;

static void fail(const char *what)
{
	fprintf(stderr, "control channel: %s\n", what);
	exit(EXIT_FAILURE);
}

void control_init(const char *host, const char *port, bool server)
{
	output_fd = dup(STDOUT_FILENO);
	if (output_fd < 0 || dup2(STDERR_FILENO, STDOUT_FILENO) < 0)
		fail("cannot set it up");
}

void control_cleanup(void)
{
	close(output_fd);
}

void control_writeln(const char *str)
{
	char line[LINE_BYTES_MAX];
	int length = snprintf(line, sizeof(line), "%s\n", str);

	if (write(output_fd, line, length) != length)
		fail("cannot write");
}

char *control_readln(void)
{
	char *line = calloc(1, LINE_BYTES_MAX);
	size_t length = 0;

	timeout_begin(TIMEOUT);
	while (length < LINE_BYTES_MAX - 1) {
		ssize_t count = read(STDIN_FILENO, &line[length], 1);

		timeout_check("control channel");
		if (count == 0)
			fail("the other side is gone");
		if (count < 0)
			continue;
		if (line[length] == '\n')
			break;
		length++;
	}
	timeout_end();
	line[length] = '\0';
	return line;
}

bool control_cmpln(char *line, const char *str, bool must)
{
	if (strcmp(line, str) == 0)
		return true;
	if (must)
		fail(line);
	return false;
}

void control_expectln(const char *str)
{
	char *line = control_readln();

	control_cmpln(line, str, true);
	free(line);
}
