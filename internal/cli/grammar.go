package cli

// grammar is the grammar: every command under all its names. Verbs are built only when they are used.
func grammar() *node {
	common := func(name string, mk func() *verb) *node { return &node{name: name, make: mk, group: groupCommon} }
	cmd := func(name string, mk func() *verb) *node { return &node{name: name, make: mk, group: groupOther} }
	noun := func(name, short string, sub ...*node) *node {
		return &node{name: name, short: short, sub: sub, group: groupManage}
	}
	return &node{name: "corten", sub: []*node{
		common("run", newRun), common("exec", newExec), common("ps", newPs), common("build", newBuild), common("images", newImages),
		common("pull", newPull), common("push", newPush), common("login", newLogin), common("logout", newLogout),
		common("search", newSearch), common("load", newLoad), common("logs", newLogs), common("version", newVersion), common("info", newInfo),

		noun("container", "Manage containers",
			cmd("attach", newAttach), cmd("commit", newCommit), cmd("cp", newCp), cmd("create", newCreate), cmd("diff", newDiff),
			cmd("exec", newExec), cmd("export", newExport), cmd("inspect", newContainerInspect), cmd("kill", newKill),
			cmd("logs", newLogs), alias(cmd("ls", newPs), "list", "ps"), cmd("pause", newPause), cmd("port", newPort),
			cmd("prune", newContainerPrune), cmd("rename", newRename), cmd("restart", newRestart), alias(cmd("rm", newRm), "remove"),
			cmd("run", newRun), cmd("start", newStart), cmd("stats", newStats), cmd("stop", newStop), cmd("top", newTop),
			cmd("unpause", newUnpause), cmd("update", newUpdate), cmd("upgrade", newUpgrade), cmd("wait", newWait)),
		noun("image", "Manage images",
			cmd("history", newHistory), cmd("import", newImport), cmd("inspect", newImageInspect), cmd("load", newLoad),
			alias(cmd("ls", newImages), "list"), cmd("prune", newImagePrune), alias(cmd("rm", newRmi), "remove"),
			cmd("save", newSave), cmd("tag", newTag), cmd("pull", newPull), cmd("push", newPush), cmd("tags", newImageTags),
			cmd("build", newBuild)),
		noun("manifest", "Manage manifests and lists of manifests at registries",
			cmd("annotate", newManifestAnnotate), cmd("create", newManifestCreate), cmd("inspect", newManifestInspect),
			cmd("push", newManifestPush), alias(cmd("rm", newManifestRm), "remove")),
		noun("builder", "Manage builds", cmd("build", newBuild), cmd("du", newBuildxDu), cmd("prune", newBuilderPrune)),
		noun("buildx", "Build images, in buildx's words", buildxNouns(cmd, noun)...),
		noun("network", "Manage networks",
			cmd("connect", newNetworkConnect), cmd("create", newNetworkCreate), cmd("disconnect", newNetworkDisconnect),
			cmd("inspect", newNetworkInspect), alias(cmd("ls", newNetworkLs), "list"), cmd("prune", newNetworkPrune),
			alias(cmd("rm", newNetworkRm), "remove"), cmd("update", newNetworkUpdate)),
		noun("system", "Manage the engine",
			cmd("df", newDf), cmd("dial-stdio", newDialStdio), cmd("events", newEvents), cmd("info", newInfo), cmd("prune", newSystemPrune)),
		noun("volume", "Manage volumes",
			cmd("clone", newVolumeClone), cmd("create", newVolumeCreate), cmd("export", newVolumeExport), cmd("import", newVolumeImport), cmd("inspect", newVolumeInspect), alias(cmd("ls", newVolumeLs), "list"),
			cmd("prune", newVolumePrune), cmd("rename", newVolumeRename), cmd("restore", newVolumeRestore), alias(cmd("rm", newVolumeRm), "remove"),
			cmd("snapshot", newVolumeSnapshot), cmd("snapshots", newVolumeSnapshots), cmd("update", newVolumeUpdate),
			noun("driver", "Drive volume plugins without an engine",
				cmd("create", newDriverCreate), cmd("inspect", newDriverInspect), alias(cmd("list", newDriverList), "ls"), cmd("mount", newDriverMount),
				cmd("path", newDriverPath), alias(cmd("remove", newDriverRemove), "rm"), cmd("unmount", newDriverUnmount))),
		noun("plugin", "Manage plugins", pluginNouns()...),
		noun("completion", "Print a completion script for a shell",
			cmd("bash", func() *verb { return newCompletion("bash") }), cmd("fish", func() *verb { return newCompletion("fish") }),
			cmd("zsh", func() *verb { return newCompletion("zsh") })),

		cmd("attach", newAttach), cmd("commit", newCommit), cmd("cp", newCp), cmd("create", newCreate), cmd("diff", newDiff),
		cmd("events", newEvents), cmd("export", newExport), cmd("history", newHistory), cmd("import", newImport),
		cmd("inspect", newInspect), cmd("kill", newKill), cmd("pause", newPause), cmd("port", newPort), cmd("rename", newRename),
		cmd("restart", newRestart), cmd("rm", newRm), cmd("rmi", newRmi), cmd("save", newSave), cmd("start", newStart),
		cmd("stats", newStats), cmd("stop", newStop), cmd("tag", newTag), cmd("top", newTop), cmd("unpause", newUnpause),
		cmd("update", newUpdate), cmd("upgrade", newUpgrade), cmd("wait", newWait), cmd("help", newHelp),

		{name: "__complete", make: newComplete},
	}}
}

func alias(n *node, names ...string) *node {
	n.aliases = names
	return n
}
