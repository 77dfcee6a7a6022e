#include "cli/help.h"

#include <ctype.h>
#include <errno.h>
#include <string.h>

enum { HELP_WIDTH = 92 };

/* Prints @text wrapped, each line after the first indented by @indent; the first starts at @col. */
static void wrap(FILE *out, const char *text, int indent, int col)
{
	while (*text) {
		size_t len = strcspn(text, " \n");

		if (col > indent && col + (int)len + 1 > HELP_WIDTH) {
			fprintf(out, "\n%*s", indent, "");
			col = indent;
		} else if (col > indent) {
			fputc(' ', out);
			col++;
		}
		fwrite(text, 1, len, out);
		col += (int)len;
		text += len;
		if (text[0] == '\n' && text[1] == '\n') {
			fprintf(out, "\n\n%*s", indent, "");
			col = indent;
			text += 2;
		} else if (*text) {
			text++;
		}
	}
	fputc('\n', out);
}

static void option_lines(FILE *out, const struct command *cmd)
{
	for (size_t i = 0; i < cmd->n_opts; i++) {
		const struct opt *o = &cmd->opts[i];
		int col = 0;

		if (o->kind == OPT_UNSUPPORTED)
			continue;
		if (o->letter)
			col = fprintf(out, "  -%c, --%s", o->letter, o->name);
		else
			col = fprintf(out, "      --%s", o->name);
		if (o->metavar)
			col += fprintf(out, " %s", o->metavar);
		if (col > 28)
			col = fprintf(out, "\n%30s", "") - 1;
		else
			fprintf(out, "%*s", 30 - col, "");
		wrap(out, o->help, 30, 30);
	}
	fprintf(out, "  -h, --help                  Print this help and exit\n");
}

void help_overview(FILE *out, const struct command *const *commands, size_t n)
{
	fprintf(out, "Usage: caisson COMMAND [OPTIONS] [ARGUMENTS]\n\n"
		     "Runs OCI containers, each in a virtual machine of its own.\n\nCommands:\n");
	for (size_t i = 0; i < n; i++) {
		if (!commands[i]->hidden)
			fprintf(out, "  %-15s  %s\n", commands[i]->name, commands[i]->summary);
	}
	fprintf(out, "\nOptions:\n  -h, --help     Print this help and exit\n"
		     "      --version  Print the version and exit\n\n"
		     "'caisson COMMAND --help' explains a command.\n");
}

void help_command(FILE *out, const struct command *cmd)
{
	fprintf(out, "Usage: caisson %s [OPTIONS]%s%s\n\n", cmd->name, *cmd->synopsis ? " " : "",
		cmd->synopsis);
	wrap(out, cmd->description ? cmd->description : cmd->summary, 0, 0);
	fprintf(out, "\nOptions:\n");
	option_lines(out, cmd);
	if (cmd->exit_status) {
		fprintf(out, "\nExit status:\n  ");
		wrap(out, cmd->exit_status, 2, 2);
	}
	if (cmd->examples) {
		const char *p = cmd->examples;

		fprintf(out, "\nExamples:\n");
		while (*p) {
			size_t len = strcspn(p, "\n");

			fprintf(out, "  %.*s\n", (int)len, p);
			p += len + (p[len] == '\n');
		}
	}
}

/* Escapes what roff would take for a request or an escape. */
static void roff(FILE *out, const char *text, size_t len)
{
	for (size_t i = 0; i < len; i++) {
		if (text[i] == '\\')
			fputs("\\e", out);
		else if (text[i] == '-')
			fputs("\\-", out);
		else if (text[i] == '\n' && i + 1 < len && text[i + 1] == '\n') {
			fputs("\n.Pp\n", out);
			i++;
		} else if ((text[i] == '.' || text[i] == '\'') && (!i || text[i - 1] == '\n'))
			fprintf(out, "\\&%c", text[i]);
		else if (text[i] == ' ' && i && text[i - 1] == '.' && i + 1 < len &&
			 isupper((unsigned char)text[i + 1]))
			fputc('\n', out);
		else
			fputc(text[i], out);
	}
}

/* An argument of an mdoc macro: words that name macros would be called, so they are quoted off. */
static void mdoc_words(FILE *out, const char *macro, const char *text)
{
	while (*text) {
		size_t len = strcspn(text, " ");

		fprintf(out, " %s \\&", macro);
		roff(out, text, len);
		text += len;
		text += strspn(text, " ");
	}
}

static void mdoc_options(FILE *out, const struct command *cmd)
{
	fprintf(out, ".Bl -tag -width Ds\n");
	for (size_t i = 0; i < cmd->n_opts; i++) {
		const struct opt *o = &cmd->opts[i];

		if (o->kind == OPT_UNSUPPORTED)
			continue;
		fprintf(out, ".It");
		if (o->letter)
			fprintf(out, " Fl \\&%c ,", o->letter);
		fprintf(out, " Fl \\-%s", o->name);
		if (o->metavar)
			mdoc_words(out, "Ar", o->metavar);
		fputc('\n', out);
		roff(out, o->help, strlen(o->help));
		fprintf(out, ".\n");
	}
	fprintf(out, ".It Fl \\&h , Fl \\-help\nPrints a summary of the options.\n.El\n");
}

void help_mdoc(FILE *out, const struct command *cmd)
{
	const char *text = cmd->description ? cmd->description : cmd->summary;
	char title[64], page[64];
	size_t i;

	for (i = 0; cmd->name[i] && i + 1 < sizeof(title); i++) {
		page[i] = cmd->name[i] == ' ' ? '-' : cmd->name[i];
		title[i] = (char)toupper((unsigned char)page[i]);
	}
	page[i] = title[i] = '\0';
	fprintf(out, ".Dd November 21, 2026\n.Dt CAISSON-%s 1\n.Os Caisson\n.Sh NAME\n.Nm caisson-%s\n.Nd ",
		title, page);
	roff(out, cmd->summary, strlen(cmd->summary));
	fprintf(out, "\n.Sh SYNOPSIS\n.Nm caisson %s\n.Op Ar options\n", cmd->name);
	if (*cmd->synopsis) {
		roff(out, cmd->synopsis, strlen(cmd->synopsis));
		fputc('\n', out);
	}
	fprintf(out, ".Sh DESCRIPTION\n");
	roff(out, text, strlen(text));
	fprintf(out, "\n.Pp\nThe options are:\n");
	mdoc_options(out, cmd);
	fprintf(out, ".Sh EXIT STATUS\n");
	if (cmd->exit_status)
		roff(out, cmd->exit_status, strlen(cmd->exit_status));
	else
		fprintf(out, "0 on success, 125 when the command failed");
	fprintf(out, ".\n");
	if (cmd->examples) {
		fprintf(out, ".Sh EXAMPLES\n.Bd -literal\n");
		roff(out, cmd->examples, strlen(cmd->examples));
		fprintf(out, "\n.Ed\n");
	}
	fprintf(out, ".Sh SEE ALSO\n.Xr caisson 1\n");
}

/* The first word of a command of two words, if it is the first such command; its length, or 0. */
static size_t starts_group(const struct command *const *commands, size_t i)
{
	size_t len = strcspn(commands[i]->name, " ");

	if (!commands[i]->name[len])
		return 0;
	for (size_t k = 0; k < i; k++) {
		if (!strncmp(commands[k]->name, commands[i]->name, len + 1))
			return 0;
	}
	return len;
}

/* The second words that follow @group. */
static void group_words(FILE *out, const struct command *const *commands, size_t n,
			const char *group, size_t len)
{
	const char *space = "";

	for (size_t i = 0; i < n; i++) {
		if (strncmp(commands[i]->name, group, len) || commands[i]->name[len] != ' ')
			continue;
		fprintf(out, "%s%s", space, commands[i]->name + len + 1);
		space = " ";
	}
}

/* The words that may follow `caisson`. */
static void first_words(FILE *out, const struct command *const *commands, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		size_t len = starts_group(commands, i);

		if (len)
			fprintf(out, " %.*s", (int)len, commands[i]->name);
		else if (!commands[i]->hidden && !strchr(commands[i]->name, ' '))
			fprintf(out, " %s", commands[i]->name);
	}
}

static void bash_command(FILE *out, const struct command *cmd)
{
	fprintf(out, "\t'%s')\n\t\topts='--help", cmd->name);
	for (size_t i = 0; i < cmd->n_opts; i++) {
		if (cmd->opts[i].kind != OPT_UNSUPPORTED)
			fprintf(out, " --%s", cmd->opts[i].name);
	}
	fprintf(out, "'\n\t\targs=%s\n\t\tcase $prev in\n", cmd->complete ? cmd->complete : "none");
	for (size_t i = 0; i < cmd->n_opts; i++) {
		const struct opt *o = &cmd->opts[i];

		if (!o->metavar || o->kind == OPT_UNSUPPORTED)
			continue;
		if (o->letter)
			fprintf(out, "\t\t-%c|--%s) value=%s ;;\n", o->letter, o->name,
				o->complete ? o->complete : "none");
		else
			fprintf(out, "\t\t--%s) value=%s ;;\n", o->name,
				o->complete ? o->complete : "none");
	}
	fprintf(out, "\t\tesac ;;\n");
}

static void bash_completion(FILE *out, const struct command *const *commands, size_t n)
{
	fputs("# bash completion for caisson, written by 'caisson completion bash'\n"
	      "_caisson_words()\n{\n\tcase $1 in\n"
	      "\tcontainer) caisson ps -a --format '{{.Names}}' 2>/dev/null ;;\n"
	      "\timage) caisson images --format '{{.Reference}}' 2>/dev/null ;;\n"
	      "\tnetwork) caisson network ls --format '{{.Name}}' 2>/dev/null ;;\n"
	      "\tvolume) caisson volume ls -q 2>/dev/null ;;\n"
	      "\tsignal) printf '%s\\n' HUP INT QUIT KILL USR1 USR2 TERM CONT STOP WINCH ;;\n"
	      "\tshell) printf '%s\\n' bash zsh ;;\n"
	      "\tesac\n}\n\n"
	      "_caisson()\n{\n"
	      "\tlocal cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]}\n"
	      "\tlocal opts= args=none value= what cmd=${COMP_WORDS[1]}\n\tCOMPREPLY=()\n"
	      "\tif [ \"$COMP_CWORD\" -eq 1 ]; then\n"
	      "\t\tCOMPREPLY=($(compgen -W '--help --version", out);
	first_words(out, commands, n);
	fputs("' -- \"$cur\"))\n\t\treturn\n\tfi\n\tcase $cmd in\n", out);
	for (size_t i = 0; i < n; i++) {
		size_t len = starts_group(commands, i);

		if (!len)
			continue;
		fprintf(out, "\t%.*s)\n\t\tif [ \"$COMP_CWORD\" -eq 2 ]; then\n"
			     "\t\t\tCOMPREPLY=($(compgen -W '", (int)len, commands[i]->name);
		group_words(out, commands, n, commands[i]->name, len);
		fputs("' -- \"$cur\"))\n\t\t\treturn\n\t\tfi\n\t\tcmd=\"$cmd ${COMP_WORDS[2]}\" ;;\n", out);
	}
	fputs("\tesac\n\tcase $cmd in\n", out);
	for (size_t i = 0; i < n; i++) {
		if (!commands[i]->hidden)
			bash_command(out, commands[i]);
	}
	fputs("\tesac\n"
	      "\tif [ -z \"$value\" ] && [ \"${cur#-}\" != \"$cur\" ]; then\n"
	      "\t\tCOMPREPLY=($(compgen -W \"$opts\" -- \"$cur\"))\n\t\treturn\n\tfi\n"
	      "\twhat=${value:-$args}\n"
	      "\tcase $what in\n"
	      "\tnone) ;;\n"
	      "\tfile) COMPREPLY=($(compgen -f -- \"$cur\")) ;;\n"
	      "\tdir) COMPREPLY=($(compgen -d -- \"$cur\")) ;;\n"
	      "\t*) COMPREPLY=($(compgen -W \"$(_caisson_words \"$what\")\" -- \"$cur\")) ;;\n"
	      "\tesac\n}\ncomplete -o default -F _caisson caisson\n", out);
}

/* Inside a zsh _arguments specification ':' and brackets have a meaning, and "'" ends the word. */
static void zsh_text(FILE *out, const char *text)
{
	for (; *text; text++) {
		if (strchr("[]:\\", *text))
			fputc('\\', out);
		if (*text == '\'')
			fputs("'\\''", out);
		else
			fputc(*text, out);
	}
}

static void zsh_action(FILE *out, const char *complete)
{
	if (!complete)
		fputs(" ", out);
	else if (!strcmp(complete, "file"))
		fputs("_files", out);
	else if (!strcmp(complete, "dir"))
		fputs("_files -/", out);
	else
		fprintf(out, "_caisson_%s", complete);
}

static void zsh_option(FILE *out, const struct opt *o, const char *dash, const char *name)
{
	fprintf(out, "\t\t\t'%s%s%s[", o->kind == OPT_LIST ? "*" : "", dash, name);
	zsh_text(out, o->help);
	fputc(']', out);
	if (o->metavar) {
		fputc(':', out);
		zsh_text(out, o->metavar);
		fputc(':', out);
		zsh_action(out, o->complete);
	}
	fputs("' \\\n", out);
}

static void zsh_command(FILE *out, const struct command *cmd)
{
	fprintf(out, "\t\t'%s')\n\t\t\t_arguments -s \\\n", cmd->name);
	for (size_t i = 0; i < cmd->n_opts; i++) {
		const struct opt *o = &cmd->opts[i];
		char letter[2] = { o->letter, '\0' };

		if (o->kind == OPT_UNSUPPORTED)
			continue;
		if (o->letter)
			zsh_option(out, o, "-", letter);
		zsh_option(out, o, "--", o->name);
	}
	fputs("\t\t\t'--help[print help and exit]' \\\n\t\t\t'*:argument:", out);
	zsh_action(out, cmd->complete);
	fputs("' ;;\n", out);
}

static void zsh_completion(FILE *out, const struct command *const *commands, size_t n)
{
	fputs("#compdef caisson\n# zsh completion for caisson, written by 'caisson completion zsh'\n\n"
	      "_caisson_container() { local -a w; w=(${(f)\"$(caisson ps -a --format '{{.Names}}' "
	      "2>/dev/null)\"}); _describe container w }\n"
	      "_caisson_image() { local -a w; w=(${(f)\"$(caisson images --format '{{.Reference}}' "
	      "2>/dev/null)\"}); compadd -a w }\n"
	      "_caisson_network() { local -a w; w=(${(f)\"$(caisson network ls --format '{{.Name}}' "
	      "2>/dev/null)\"}); compadd -a w }\n"
	      "_caisson_volume() { local -a w; w=(${(f)\"$(caisson volume ls -q "
	      "2>/dev/null)\"}); compadd -a w }\n"
	      "_caisson_signal() { compadd HUP INT QUIT KILL USR1 USR2 TERM CONT STOP WINCH }\n"
	      "_caisson_shell() { compadd bash zsh }\n\n"
	      "_caisson()\n{\n\tlocal curcontext=$curcontext state line\n\tlocal -a commands\n"
	      "\tcommands=(\n", out);
	for (size_t i = 0; i < n; i++) {
		size_t len = starts_group(commands, i);

		if (len)
			fprintf(out, "\t\t'%.*s:Manage %.*ss'\n", (int)len, commands[i]->name, (int)len,
				commands[i]->name);
		if (commands[i]->hidden || strchr(commands[i]->name, ' '))
			continue;
		fprintf(out, "\t\t'%s:", commands[i]->name);
		zsh_text(out, commands[i]->summary);
		fputs("'\n", out);
	}
	fputs("\t)\n\t_arguments -C '1:command:->command' '*::argument:->argument'\n"
	      "\tcase $state in\n\tcommand) _describe command commands ;;\n"
	      "\targument)\n\t\tlocal cmd=$line[1]\n\t\tcase $cmd in\n", out);
	for (size_t i = 0; i < n; i++) {
		size_t len = starts_group(commands, i);

		if (!len)
			continue;
		fprintf(out, "\t\t%.*s)\n\t\t\tif (( CURRENT == 2 )); then compadd ", (int)len,
			commands[i]->name);
		group_words(out, commands, n, commands[i]->name, len);
		fputs("; return; fi\n\t\t\tcmd=\"$cmd $words[2]\"; shift words; (( CURRENT-- )) ;;\n", out);
	}
	fputs("\t\tesac\n\t\tcase $cmd in\n", out);
	for (size_t i = 0; i < n; i++) {
		if (!commands[i]->hidden)
			zsh_command(out, commands[i]);
	}
	fputs("\t\tesac ;;\n\tesac\n}\n\n_caisson \"$@\"\n", out);
}

int help_completion(FILE *out, const char *shell, const struct command *const *commands, size_t n)
{
	if (!strcmp(shell, "bash"))
		bash_completion(out, commands, n);
	else if (!strcmp(shell, "zsh"))
		zsh_completion(out, commands, n);
	else
		return -EINVAL;
	return 0;
}
