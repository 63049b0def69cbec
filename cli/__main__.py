from xattn.cli import main

main()
