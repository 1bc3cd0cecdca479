from skald.cli import main

main()
