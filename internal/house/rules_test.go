package house

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strings"
	"testing"
)

// Names that say nothing about what a package holds.
var emptyNames = map[string]bool{"util": true, "utils": true, "common": true, "types": true, "helpers": true, "misc": true}

// Globals that are not read-only tables, each with its reason.
var globals = map[string]string{
	"internal/version.Version": "set by the linker",
	"internal/version.Commit":  "set by the linker",
}

func TestHouseRules(t *testing.T) {
	documented := map[string]bool{}
	fset := token.NewFileSet()
	goFiles(t, func(dir, path string) {
		file, err := parser.ParseFile(fset, path, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			return
		}
		documented[dir] = documented[dir] || introduces(file)
		if emptyNames[file.Name.Name] {
			t.Errorf("%s: a package called %q says nothing", path, file.Name.Name)
		}
		if strings.HasPrefix(dir, "internal/") {
			checkDecls(t, fset, dir, file)
			checkCalls(t, fset, dir, file)
		}
	})
	for dir, ok := range documented {
		if !ok {
			t.Errorf("%s: the package does not introduce itself (is / owns / promises)", dir)
		}
	}
}

func introduces(file *ast.File) bool {
	return file.Doc != nil && (strings.HasPrefix(file.Doc.Text(), "Package ") || strings.HasPrefix(file.Doc.Text(), "Command "))
}

func checkDecls(t *testing.T, fset *token.FileSet, dir string, file *ast.File) {
	t.Helper()
	for _, decl := range file.Decls {
		switch d := decl.(type) {
		case *ast.FuncDecl:
			if d.Recv == nil && d.Name.Name == "init" {
				t.Errorf("%s: init hides work and order; join things in cmd", fset.Position(d.Pos()))
			}
		case *ast.GenDecl:
			if d.Tok != token.VAR {
				continue
			}
			for _, spec := range d.Specs {
				checkGlobal(t, fset, dir, d, spec.(*ast.ValueSpec))
			}
		}
	}
}

// checkGlobal refuses package variables without a value: they can only be state. Tables and errors have a value; embeds are filled by the compiler.
func checkGlobal(t *testing.T, fset *token.FileSet, dir string, decl *ast.GenDecl, spec *ast.ValueSpec) {
	t.Helper()
	if len(spec.Values) > 0 {
		return
	}
	for _, doc := range []*ast.CommentGroup{decl.Doc, spec.Doc} {
		if doc == nil {
			continue
		}
		for _, c := range doc.List {
			if strings.HasPrefix(c.Text, "//go:embed ") {
				return
			}
		}
	}
	for _, name := range spec.Names {
		if _, ok := globals[dir+"."+name.Name]; !ok {
			t.Errorf("%s: %s is global state; hand it over instead", fset.Position(spec.Pos()), name.Name)
		}
	}
}

func checkCalls(t *testing.T, fset *token.FileSet, dir string, file *ast.File) {
	t.Helper()
	ast.Inspect(file, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		switch fn := call.Fun.(type) {
		case *ast.Ident:
			if fn.Name == "panic" {
				t.Errorf("%s: panic belongs to nobody; return an error", fset.Position(call.Pos()))
			}
		case *ast.SelectorExpr:
			pkg, ok := fn.X.(*ast.Ident)
			if !ok {
				return true
			}
			switch name := pkg.Name + "." + fn.Sel.Name; name {
			case "os.Exit", "log.Fatal", "log.Fatalf", "syscall.Exit", "unix.Exit":
				if !exits[filepath.ToSlash(dir)] {
					t.Errorf("%s: %s outside cmd", fset.Position(call.Pos()), name)
				}
			}
		}
		return true
	})
}

// exits lists the packages outside cmd that may end their process, because they are the body of a tiny one.
var exits = map[string]bool{}
